"""A slot of a replica, lent to another process, which calls the replica by itself and reports how that ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from forgectl.actor.service.replica import ReplicaMesh, Work


class Loan:
    """One request of another process. The service counts it, queues it and repeats it like its own.

    `begin` starts the request with a `Work`, as `ServiceCore.lend` does. The other process awaits `turn()`, calls the
    mesh, and reports by `ended`. After a death it awaits another `turn()`.
    """

    def __init__(self, begin: Callable[[Work], Coroutine[Any, Any, Any]]) -> None:
        loop = asyncio.get_running_loop()
        self._turn: asyncio.Future[ReplicaMesh] = loop.create_future()
        self._outcome: asyncio.Future[None] | None = None
        self._task = loop.create_task(begin(self._lent))
        self._task.add_done_callback(self._settle)

    async def _lent(self, mesh: ReplicaMesh) -> None:
        self._outcome = asyncio.get_running_loop().create_future()
        if not self._turn.done():
            self._turn.set_result(mesh)
        await self._outcome

    def _settle(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._turn.done():
            return
        if error is None:
            self._turn.cancel()  # nobody waits for it, or it was given up
        else:
            self._turn.set_exception(error)
            self._turn.exception()  # whoever made the call knows it; asyncio would report it as never retrieved

    async def turn(self) -> ReplicaMesh:
        """The mesh to call now; raises what the service raises where there will be none. One task may wait for it."""
        mesh = await self._turn
        self._turn = asyncio.get_running_loop().create_future()
        if self._task.done():
            self._settle(self._task)
        return mesh

    def ended(self, error: BaseException | None) -> None:
        """Report how the call ended: None for a result."""
        if self._outcome is None or self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    def cancel(self) -> None:
        """Give it up, whatever it waits for: nobody wants its result."""
        self._task.cancel()

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the service is done with it."""
        self._task.add_done_callback(lambda _: callback())
