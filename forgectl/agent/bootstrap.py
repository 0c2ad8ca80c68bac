"""The first process of an agent: starts the fork servers that it will need, then becomes the agent, with their pids.

Run as `python -S -I bootstrap.py`: a bare interpreter that uses only built-in modules. Every launch waits for the
import of torch in the fork servers, and it starts a tenth of a second sooner this way. Standard input starts with
fields that start_command.py wrote, a NUL after each: the agent's folder, its lock in it, then for each server python,
log, setup, the number of variables, and the variables. The rest is for the agent.
"""

from __future__ import annotations

import posix
import pwd
import sys
from _signal import SIG_DFL, SIGPIPE, SIGXFSZ, alarm, signal  # type: ignore[import-not-found]
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from fcntl import LOCK_EX, LOCK_NB, flock

TYPE_CHECKING = False  # as in typing, whose import would take longer than everything else here
if TYPE_CHECKING:
    from typing import NoReturn

HEAD = 8  # digits of the length of the fields, in bytes
START_SECONDS = 60
"""An agent that does not listen by then ends: nobody waits for it any more, and its lease does not count yet."""
BOOT = __file__.rpartition("/agent/")[0] + "/boot.py"
PADDING = b" " * 200
"""A blank argument of the fork server. Its ranks write their titles over its command line and need the room."""


def main() -> None:
    """Become a daemon, start the servers unless another agent of the run is alive here, continue as the agent."""
    folder, lock, *servers = read(int(read(HEAD))).split(b"\0")[:-1]
    if posix.fork() > 0:
        posix._exit(0)
    alarm(START_SECONDS)
    posix.setsid()
    posix.chdir("/")
    held = take_lock(folder, lock)
    started = [] if held is None else start(servers)
    inherited = [] if held is None else [held]
    inherited += [server.fileno() for _, server in started if server]
    for fd in inherited:
        posix.set_inheritable(fd, True)
    handles = [f"{pid}:{server.fileno()}" if server else "" for pid, server in started]
    held_by = "" if held is None else str(held)
    posix.execv(sys.executable, [sys.executable, BOOT, "agent", held_by, *handles])


def read(count: int) -> bytes:
    """Read exactly `count` bytes of standard input; exits when it ends before."""
    data = b""
    while len(data) < count:
        part = posix.read(0, count - len(data))
        if not part:  # the process that started us is gone
            posix._exit(1)
        data += part
    return data


def take_lock(folder: bytes, lock: bytes) -> int | None:
    """The descriptor of the lock, held until the agent ends; None on failure, and the agent will find out why."""
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
    """Start all servers; (0, None) for one that cannot start: the agent reports it when a mesh needs the server."""
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

    `setup` is its first message; `variables` ("NAME=VALUE") are added to the environment of this process. Returns
    its pid and our end of its socket.
    """
    env = {name: value for name, value in posix.environ.items() if name != b"FORGE_MESH"}
    for variable in variables:
        name, _, value = variable.partition(b"=")
        env[name] = value
    found = find(python, env)
    out = posix.open(log, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    report, report_in = posix.pipe2(posix.O_CLOEXEC)
    try:
        try:
            pid = posix.fork() or become(found, env, theirs.fileno(), out, report_in)
        finally:
            theirs.close()
            posix.close(out)
            posix.close(report_in)
        error = posix.read(report, 16)  # empty once the child has become the server
    finally:
        posix.close(report)
    if error:
        posix.waitpid(pid, 0)
        raise OSError(int(error), posix.strerror(int(error)), found.decode(errors="replace"))
    try:
        ours.send(setup)
    except BrokenPipeError:  # it has ended; whoever waits for it will see that
        pass
    return pid, ours


def become(python: bytes, env: dict[bytes, bytes], agent: int, out: int, report: int) -> NoReturn:
    """Become a fork server, or write the errno of the failure to `report`. Runs in a forked child, so it never returns.

    It does not use posix_spawn: glibc's makes the new process ignore two signals, and its ranks would inherit that.
    """
    try:
        for fd, target in ((posix.open("/dev/null", posix.O_RDONLY), 0), (out, 1), (out, 2)):
            posix.dup2(fd, target)
        posix.set_inheritable(agent, True)
        for number in (SIGPIPE, SIGXFSZ):  # Python ignores them, and an exec would keep that
            signal(number, SIG_DFL)
        posix.execve(python, [python, BOOT.encode(), b"forkserver", b"%d" % agent, PADDING], env)
    except OSError as e:
        posix.write(report, b"%d" % (e.errno or 0))
    finally:
        posix._exit(127)


def find(python: bytes, env: dict[bytes, bytes]) -> bytes:
    """The interpreter's file, as a shell would find it; `python` itself if there is none."""
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
