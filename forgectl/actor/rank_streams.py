"""The streams of a rank: those that its callers have begun, and have not got the end of yet."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from forgectl.actor.callers import Caller, Callers
from forgectl.actor.outflow import FAILED, GOING, Batch, Outflow


class Streams:
    """By the number of the call that began each. A stream ends with its caller's process at the latest."""

    def __init__(self) -> None:
        self._under_way: dict[int, tuple[Outflow, Callable[[], None]]] = {}
        self._callers = Callers()

    async def run(self, number: int, caller: Caller, outflow: Outflow, work: Awaitable[None]) -> None:
        """Do the work that fills `outflow`, until it ends, or the caller leaves or ends."""
        close = functools.partial(self.close, number)
        self._under_way[number] = outflow, self._callers.watch(caller, close)
        await outflow.run(work)

    async def next(self, number: int) -> Batch:
        """The next values of a stream. One that has ended, or failed before it began, has none."""
        if number not in self._under_way:
            return [], FAILED
        batch = await self._under_way[number][0].take()
        if batch[1] != GOING:
            self.close(number)
        return batch

    def close(self, number: int) -> None:
        """Nobody wants more of it."""
        if (found := self._under_way.pop(number, None)) is not None:
            outflow, forget = found
            forget()
            outflow.close()
