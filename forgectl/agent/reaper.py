"""Collects every child of the agent: its fork servers, and the orphans that the kernel gives it as a subreaper."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from forgectl.system.processes import collect_children


class Reaper:
    """Waits for all children in one place, so that two waiters cannot steal each other's children."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._claims: dict[int, Callable[[int], None]] = {}
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def claim(self, pid: int, then: Callable[[int], None]) -> None:
        """Call `then(wait_status)` when `pid` is collected here."""
        self._claims[pid] = then

    def disclaim(self, pid: int) -> None:
        """Forget `pid`: another process has collected it."""
        self._claims.pop(pid, None)

    def reap(self) -> None:
        """Collect all children that have ended."""
        for pid, status in collect_children():
            if then := self._claims.pop(pid, None):
                then(status)
