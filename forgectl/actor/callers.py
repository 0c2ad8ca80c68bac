"""Who calls a rank, as the caller describes itself, and when that process has ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

from forgectl.actor.deaths import is_over
from forgectl.actor.follower import follower
from forgectl.messages.sockets import of_this_process, process_of
from forgectl.protocol.supervision import MeshNews
from forgectl.system.loops import in_loop
from forgectl.system.processes import boot_id
from forgectl.system.tasks import on_exit

Gone = Callable[[], None]


class Caller(NamedTuple):
    """A process of a run. `mesh` is empty unless the process is a rank, or was started by one."""

    machine: str  # its boot id
    process: bytes  # see `sockets.process_of`
    run: str
    mesh: str
    generation: int


_this: tuple[int, Caller] | None = None


def this_caller() -> Caller:
    """This process."""
    global _this  # noqa: PLW0603  # made once; a forked child is another one
    if _this is None or _this[0] != os.getpid():
        mesh, generation = os.environ.get("FORGE_MESH", ""), int(os.environ.get("FORGE_GENERATION", "0"))
        run = os.environ.get("FORGE_RUN_ID", "")
        _this = os.getpid(), Caller(boot_id(), of_this_process(), run, mesh, generation)
    return _this[1]


class Callers:
    """Tells when callers have ended: at once on this machine (by pidfd), elsewhere when their mesh is reported dead.

    A process on another machine that is no rank is not noticed; it ends with the run at the latest. Use it in one loop.
    """

    def __init__(self) -> None:
        self._waiting: dict[Caller, set[Gone]] = {}
        self._watched: dict[Caller, Callable[[], None]] = {}  # those of this machine, with what stops that
        self._news: dict[str, MeshNews | None] = {}  # the latest of each mesh that is followed

    def watch(self, caller: Caller, gone: Gone) -> Callable[[], None]:
        """Call `gone` once the caller has ended. Returns what to call if nobody needs to know any more."""
        if caller not in self._waiting:
            self._waiting[caller] = set()
            self._begin(caller)
        self._waiting[caller].add(gone)
        return functools.partial(self._forget, caller, gone)

    def _forget(self, caller: Caller, gone: Gone) -> None:
        waiting = self._waiting.get(caller)
        if waiting is not None:
            waiting.discard(gone)
            if not waiting:
                self._end(caller)

    def _begin(self, caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        pid = process_of(caller.process) if caller.machine == boot_id() else None
        if pid is not None:
            with contextlib.suppress(OSError):
                try:
                    self._watched[caller] = on_exit(pid, functools.partial(self._has_ended, caller))
                except ProcessLookupError:
                    loop.call_soon(self._has_ended, caller)
                return
        if caller.mesh and caller.run == os.environ.get("FORGE_RUN_ID"):
            self._follow(caller, loop)

    def _follow(self, caller: Caller, loop: asyncio.AbstractEventLoop) -> None:
        mesh = caller.mesh
        if mesh not in self._news:
            self._news[mesh] = None
            following = follower(caller.run, os.environ["FORGE_AGENT"])
            following.watch(mesh, lambda news: in_loop(loop, self._take, news))
        elif (latest := self._news[mesh]) is not None:
            loop.call_soon(self._take, latest)

    def _take(self, news: MeshNews) -> None:
        self._news[news.mesh] = news
        for caller in [c for c in self._waiting if c not in self._watched and c.mesh == news.mesh]:
            if is_over(caller.generation, news):
                self._has_ended(caller)

    def _has_ended(self, caller: Caller) -> None:
        for gone in self._end(caller):
            gone()

    def _end(self, caller: Caller) -> set[Gone]:
        if (stop := self._watched.pop(caller, None)) is not None:
            stop()
        return self._waiting.pop(caller, set())
