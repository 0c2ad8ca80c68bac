"""Collects every child of the agent: its fork servers, and the orphans that fall to it as a subreaper."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from forgectl.system.processes import collect_children


class Reaper:
    """Waits for all children in one place, so that no two waiters steal each other's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._claims: dict[int, Callable[[int], None]] = {}
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def claim(self, pid: int, then: Callable[[int], None]) -> None:
        """Have `then(wait_status)` called when `pid` is collected here."""
        self._claims[pid] = then

    def disclaim(self, pid: int) -> None:
        """Somebody else has collected `pid`."""
        self._claims.pop(pid, None)

    def reap(self) -> None:
        """Collect all that have ended."""
        for pid, status in collect_children():
            if then := self._claims.pop(pid, None):
                then(status)
