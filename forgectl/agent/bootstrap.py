"""The first process of an agent: starts the fork servers that it will need, then becomes the agent, with their pids.

Run as `python -S -I bootstrap.py`: a bare interpreter that uses only what is built in. Everybody waits for the import
of torch in the fork servers, which starts a tenth of a second sooner this way. Standard input starts with fields that
start_command.py wrote, a NUL after each: the agent's folder, its lock in it, then for each server python, log, setup,
the number of variables, and the variables. The rest is for the agent.
"""

from __future__ import annotations

import posix
import pwd
import sys
from _signal import SIG_DFL, SIGPIPE, SIGXFSZ, alarm, signal  # type: ignore[import-not-found]
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from fcntl import LOCK_EX, LOCK_NB, flock

TYPE_CHECKING = False  # as typing's, which would take longer than all else
if TYPE_CHECKING:
    from typing import NoReturn

HEAD = 8  # digits that say how long the fields are
START_SECONDS = 60
"""What cannot listen by then ends: nobody waits for it any more, and no lease counts yet."""
BOOT = __file__.rpartition("/agent/")[0] + "/boot.py"
PADDING = b" " * 200
"""An empty argument that the fork server is started with, so that its ranks have room for a title."""


def main() -> None:
    """Become a daemon, start the servers unless another agent of the run is alive here, go on as the agent."""
    folder, lock, *servers = read(int(read(HEAD))).split(b"\0")[:-1]
    if posix.fork() > 0:
        posix._exit(0)
    alarm(START_SECONDS)
    posix.setsid()
    posix.chdir("/")
    held = lock_up(folder, lock)
    started = [] if held is None else start(servers)
    inherited = [] if held is None else [held]
    inherited += [server.fileno() for _, server in started if server]
    for fd in inherited:
        posix.set_inheritable(fd, True)
    told = [f"{pid}:{server.fileno()}" if server else "" for pid, server in started]
    held_by = "" if held is None else str(held)
    posix.execv(sys.executable, [sys.executable, BOOT, "agent", held_by, *told])


def read(count: int) -> bytes:
    """Exactly so many bytes of standard input."""
    data = b""
    while len(data) < count:
        part = posix.read(0, count - len(data))
        if not part:  # whoever started us is gone
            posix._exit(1)
        data += part
    return data


def lock_up(folder: bytes, lock: bytes) -> int | None:
    """The lock, held until the agent ends; None where it cannot be had: the agent will find out why."""
    try:
        posix.mkdir(folder, 0o700)
    except OSError:
        pass
    try:
        fd = posix.open(lock, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except OSError:
        posix.close(fd)
        return None
    return fd


def start(fields: list[bytes]) -> list[tuple[int, socket | None]]:
    """Start all servers; (0, None) for one that cannot be: the agent will say so when it is wanted."""
    started: list[tuple[int, socket | None]] = []
    while fields:
        python, log, setup, count, *fields = fields
        env, fields = fields[: int(count)], fields[int(count) :]
        try:
            started.append(spawn(python, log, setup, env))
        except OSError:
            started.append((0, None))
    return started


def spawn(python: bytes, log: bytes, setup: bytes, variables: list[bytes]) -> tuple[int, socket]:
    """Start a fork server, a child that dies with this process; raises OSError.

    `setup` is said to it, `variables` ("NAME=VALUE") come to those of this process. Returns its pid, and what it is
    spoken to through.
    """
    env = {name: value for name, value in posix.environ.items() if name != b"FORGE_MESH"}
    for variable in variables:
        name, _, value = variable.partition(b"=")
        env[name] = value
    found = find(python, env)
    out = posix.open(log, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    said, says = posix.pipe2(posix.O_CLOEXEC)
    try:
        try:
            pid = posix.fork() or become(found, env, theirs.fileno(), out, says)
        finally:
            theirs.close()
            posix.close(out)
            posix.close(says)
        error = posix.read(said, 16)  # nothing, once it has become the server
    finally:
        posix.close(said)
    if error:
        posix.waitpid(pid, 0)
        raise OSError(int(error), posix.strerror(int(error)), found.decode(errors="replace"))
    try:
        ours.send(setup)
    except BrokenPipeError:  # it has ended: whoever waits for it is told
        pass
    return pid, ours


def become(python: bytes, env: dict[bytes, bytes], agent: int, out: int, says: int) -> NoReturn:
    """Be a fork server from here on, or say the errno of what prevents it. After a fork: nothing of the parent's runs.

    No posix_spawn: glibc's has the new process ignore two signals, which its ranks would inherit.
    """
    try:
        for fd, target in ((posix.open("/dev/null", posix.O_RDONLY), 0), (out, 1), (out, 2)):
            posix.dup2(fd, target)
        posix.set_inheritable(agent, True)
        for number in (SIGPIPE, SIGXFSZ):  # Python ignores them, which an exec would hand on
            signal(number, SIG_DFL)
        posix.execve(python, [python, BOOT.encode(), b"forkserver", b"%d" % agent, PADDING], env)
    except OSError as e:
        posix.write(says, b"%d" % (e.errno or 0))
    finally:
        posix._exit(127)


def find(python: bytes, env: dict[bytes, bytes]) -> bytes:
    """The interpreter's file, as a shell would find it."""
    if python.startswith(b"~"):
        user, slash, rest = python[1:].partition(b"/")
        try:
            home = pwd.getpwnam(user.decode()).pw_dir.encode() if user else env[b"HOME"]
        except KeyError:
            return python
        return home + slash + rest
    if b"/" not in python:
        for folder in env.get(b"PATH", b"/bin:/usr/bin").split(b":"):
            if posix.access(folder + b"/" + python, posix.X_OK):
                return folder + b"/" + python
    return python


if __name__ == "__main__":
    main()
