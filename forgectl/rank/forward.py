"""What Monarch starts in place of a rank: asks the agent to fork the rank, and ends as it ends.

Run as `python -S -I forward.py SOCKET VERSION RUN MESH GENERATION RANK`: a bare interpreter, and of it what is built
in, for `json`, `os`, `signal` and `socket` would take longer than all else that it does.
"""

import posix
import sys
from _json import encode_basestring_ascii as quoted
from _signal import SIG_DFL, SIG_IGN, SIGINT, SIGKILL, signal  # type: ignore[import-not-found]
from _socket import AF_UNIX, SOCK_STREAM, socket

MONARCHS = (b"HYPERACTOR_", b"MONARCH_", b"BOOTSTRAP_")
"""What Monarch tells its process by: everything else the rank gets from its plan."""
NAMES = ("version", "run", "mesh", "generation", "rank")
NUMBERS = ("generation", "rank")


def main() -> None:
    """Hand the rank over, wait for its end, mirror it."""
    path = sys.argv[1]
    signal(SIGINT, SIG_IGN)  # Ctrl-C in a terminal reaches us too; the run ends in its own order
    agent = socket(AF_UNIX, SOCK_STREAM)
    folder, _, name = path.rpartition("/")
    try:
        posix.chdir(folder)  # socket addresses are limited to 107 bytes
        agent.connect(name)
    except OSError:  # it has ended, and with it all that was to be forked
        posix._exit(1)
    posix.chdir("/")
    agent.sendall(request(sys.argv[2:]))
    answer = b""
    while not answer.endswith(b"\n"):
        received = agent.recv(4096)
        if not received:  # the agent is gone, or would not have it
            posix._exit(1)
        answer += received
    status = int(answer.partition(b'"status":')[2].translate(None, b"}\n").partition(b",")[0])
    if posix.WIFSIGNALED(status):
        number = posix.WTERMSIG(status)
        if number != SIGKILL:
            signal(number, SIG_DFL)
        posix.kill(posix.getpid(), number)
    posix._exit(posix.WEXITSTATUS(status))


def request(arguments: list[str]) -> bytes:
    """The line that asks for the rank, protocol.Forward in JSON."""
    fields = {"type": quoted("Forward")}
    for name, value in zip(NAMES, arguments, strict=True):
        fields[name] = value if name in NUMBERS else quoted(value)
    marks = {text(k): quoted(text(v)) for k, v in posix.environ.items() if k.startswith(MONARCHS)}
    fields["env"] = written(marks)
    return written(fields).encode() + b"\n"


def written(fields: dict[str, str]) -> str:
    """A JSON object of values that are JSON already."""
    return "{" + ", ".join(f"{quoted(name)}: {value}" for name, value in fields.items()) + "}"


def text(data: bytes) -> str:
    """What `os.fsdecode` makes of it."""
    return data.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


if __name__ == "__main__":
    main()
