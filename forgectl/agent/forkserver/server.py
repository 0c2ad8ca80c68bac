"""The fork server: imports what a mesh preloads once, then forks ranks and stores in milliseconds.

It has one thread and one loop, no CUDA and no monarch, so a child inherits only what is safe to inherit. It and its
parent, the agent, talk over a SOCK_SEQPACKET pair. A request is one JSON object, with descriptors beside it.

    agent → server   {"fork": TOKEN, "what": "rank"|"store", …} + descriptors
    server → agent   {"warm": true, "torch": BOOL} | {"cold": WHY, "traceback": TEXT, "absent": MODULE or not}
                     {"forked": TOKEN, "pid": PID, "start_time": TICKS} + pidfd | {"refused": TOKEN, "why": TEXT}
                     {"exited": PID, "status": WAIT_STATUS, "time": UNIX_TIME}
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from forgectl import redaction
from forgectl.rank import error_file, late_variables
from forgectl.system.processes import become_subreaper, collect_children, die_with_parent, identify

PACKET = 160 * 1024
"""Bytes of one request or answer: below the smallest default socket buffer."""

Child = Callable[[], None]


def main(arguments: list[str]) -> Child | None:
    """Serve on the inherited descriptor until the agent closes it; in a forked child, return what it must run."""
    agent = socket.socket(fileno=int(arguments[0]))
    agent.set_inheritable(False)
    die_with_parent(os.getppid())
    become_subreaper()
    first, _ = _received(agent)
    if not first:
        return None
    setup = json.loads(first)
    redaction.of_process()
    gc.disable()  # imports make many objects and drop few: without the collector they are an eighth faster
    late_variables.note()
    try:
        _preload(setup["workdir"], setup["preload"])
    except BaseException as e:
        _send(agent, _why_cold(e))
        return None
    finally:
        late_variables.noted()
    gc.freeze()  # the collector must not touch, and so copy, the memory that the children share
    gc.enable()
    server = _Server(agent)
    server.send({"warm": True, "torch": "torch" in sys.modules})
    return server.serve()


def _received(agent: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors; an empty one once the agent is gone."""
    try:
        message, fds, _, _ = socket.recv_fds(agent, PACKET, 64)
    except ConnectionResetError:  # it was killed, and had not read all that we sent
        return b"", []
    return message, fds


def _send(agent: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    data = json.dumps(message).encode()
    with contextlib.suppress(OSError):  # the agent is gone: the next read ends this process too
        socket.send_fds(agent, [data], fds or [])


_NO_MONARCH = "it imports monarch, whose threads do not survive a fork: import it in the actor's module instead"


def _preload(workdir: str, modules: list[str]) -> None:
    os.chdir(workdir)
    sys.path.insert(0, workdir)
    # Our own modules, which every rank needs, come last. `__import__` keeps importlib's frames out of tracebacks.
    for wanted in (*modules, "forgectl.rank.script", "forgectl.rank.stdio"):
        name = wanted.removesuffix("?")
        if name != wanted and importlib.util.find_spec(name.partition(".")[0]) is None:
            continue
        try:
            __import__(name)
        except BaseException as e:
            e.__traceback__ = error_file.without_our_frames(e.__traceback__)
            absent = isinstance(e, ModuleNotFoundError) and e.name == name
            raise _CannotPreloadError(name, absent) from e
        if "monarch" in sys.modules:
            raise _CannotPreloadError(name, False) from ImportError(_NO_MONARCH)


class _CannotPreloadError(Exception):
    """A module of `preload:` cannot be imported, or is `absent`; its `__cause__` is the reason."""

    def __init__(self, name: str, absent: bool) -> None:
        super().__init__(name)
        self.absent = absent


def _why_cold(error: BaseException) -> dict[str, Any]:
    cause, why = error, "cannot get warm: "
    if isinstance(error, _CannotPreloadError) and error.absent:
        return {
            "cold": f"{sys.executable} has no {error}, which `preload` names",
            "traceback": "",
            "absent": str(error),
        }
    if isinstance(error, _CannotPreloadError) and error.__cause__ is not None:
        cause, why = error.__cause__, f"cannot preload {error}: "
    lines = error_file.describe(cause).splitlines()
    return {"cold": why + lines[-1], "traceback": error_file.format_traceback(cause)}


class _Server:
    def __init__(self, agent: socket.socket) -> None:
        self.agent = agent
        self.pid = os.getpid()
        self.wakeup, self._wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def serve(self) -> Child | None:
        poll = select.poll()
        poll.register(self.agent, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wakeup, 4096)
                    self._reap()
                    continue
                message, fds = _received(self.agent)
                if not message:
                    return None
                child = self._fork(json.loads(message), fds)
                if child is not None:
                    return child

    def _reap(self) -> None:
        for pid, status in collect_children():
            self.send({"exited": pid, "status": status, "time": time.time()})

    def _fork(self, request: dict[str, Any], fds: list[int]) -> Child | None:
        sys.stdout.flush()
        try:
            pid = os.fork()
        except OSError as e:
            self.send({"refused": request["fork"], "why": str(e)})
            pid = -1
        if pid == 0:
            return self._become_child(request, fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            pidfd = os.pidfd_open(pid)  # the child is not reaped yet, so no other process has its pid
            identity = identify(pid)
            start_time = identity.start_time if identity else 0
            self.send({"forked": request["fork"], "pid": pid, "start_time": start_time}, [pidfd])
            os.close(pidfd)
        return None

    def _become_child(self, request: dict[str, Any], fds: list[int]) -> Child:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd in (self.wakeup, self._wakeup_in):
            os.close(fd)
        self.agent.close()
        if request["what"] == "store":
            from forgectl.agent.forkserver.rendezvous import serve_store

            return lambda: serve_store(self.pid, fds[0], fds[1], request["address"], request["world_size"])
        from forgectl.rank.script import begin

        return begin(self.pid, request, fds)

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send the agent an answer, with descriptors."""
        _send(self.agent, message, fds)
