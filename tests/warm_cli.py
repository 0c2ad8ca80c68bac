"""Runs forgectl's commands in processes forked from one that has imported them, at a fraction of their processor time.

A command is a process with its own arguments, environment, folder and standard streams, as one from a shell; only its
imports are spared. `Forge.run` starts commands so: `argv` names a small program that hands its streams to the command
and ends as it does. `Forge.start` runs `python -m forgectl`, and so do the tests of imports.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

AHEAD = ("cli", "spec", "plan", "model", "protocol", "hosts", "log_output", "wire", "controller", "transport", "sync")
"""The packages that are imported before the forks, with all that they need."""
CLIENT = Path(__file__).with_name("warm_cli_client.py")


class WarmCli:
    """The process that has imported the commands. It ends with the process that made this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="forgectl-tests-"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "socket"))
            listener.listen(64)
            argv = [sys.executable, __file__, str(listener.fileno()), str(self.folder)]
            self._server = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])

    def argv(self, *arguments: str) -> list[str]:
        """The command line of a command."""
        return [sys.executable, "-S", "-I", str(CLIENT), str(self.folder / "socket"), *arguments]

    def command_of(self, client: int) -> list[int]:
        """The pid of the command that a process with such a command line has started, if it has."""
        with contextlib.suppress(OSError):
            return [int((self.folder / str(client)).read_text())]
        return []


@functools.cache
def warm_cli() -> WarmCli:
    """That of this process."""
    return WarmCli()


def _serve(listener: socket.socket, folder: Path) -> None:
    for package in AHEAD:
        top = importlib.import_module(f"forgectl.{package}")
        for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
            if ".templates" not in module.name:
                importlib.import_module(module.name)
    gc.freeze()
    waited = selectors.DefaultSelector()
    waited.register(listener, selectors.EVENT_READ)
    waited.register(0, selectors.EVENT_READ)  # ends with whoever made us
    while True:
        for key, _ in waited.select():
            if key.fileobj == 0:
                shutil.rmtree(folder)
                return
            if key.fileobj is listener:
                connection, _ = listener.accept()
                pid, client = _begun(connection)
                pidfd = os.pidfd_open(pid)
                (folder / str(client)).write_text(str(pid))
                waited.register(pidfd, selectors.EVENT_READ, (pid, client, connection))
                waited.register(connection, selectors.EVENT_READ, pidfd)
            elif isinstance(key.data, int):  # the client was killed, or has its answer
                waited.unregister(key.fileobj)
                signal.pidfd_send_signal(key.data, signal.SIGKILL)
            else:
                pid, client, connection = key.data
                _, status = os.waitpid(pid, 0)
                waited.unregister(key.fileobj)
                with contextlib.suppress(KeyError):
                    waited.unregister(connection)
                os.close(key.fd)
                (folder / str(client)).unlink()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(str(status).encode())


def _begun(connection: socket.socket) -> tuple[int, int]:
    """The pid of a new command and that of its client, which sends its streams and what else a process inherits."""
    head, fds, _, _ = socket.recv_fds(connection, 8, 3)
    data = b""
    while len(data) < int(head):
        data += connection.recv(int(head) - len(data))
    client, folder, count, *rest = data.decode(errors="surrogateescape").split("\0")
    arguments, variables = rest[: int(count)], rest[int(count) :]
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        return pid, int(client)
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os.closerange(3, 1024)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(dict(v.split("=", 1) for v in variables))
        sys.argv = ["forgectl", *arguments]
        runpy.run_module("forgectl", run_name="__main__", alter_sys=True)
    except BaseException:  # the command exits by itself
        traceback.print_exc()
    os._exit(70)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
