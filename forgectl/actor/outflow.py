"""A rank's side of a stream: what a generator has yielded, and its caller has not got yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

from forgectl.messages import pickling

MOST = 256
"""Values that may wait for the caller; the generator stands still meanwhile."""
MOST_BYTES = 8 * 2**20
"""The same in bytes of their pickles; a single value may be longer."""
LONGEST = 0.02
"""Seconds that the first of them waits, after which no other is added: only cheap values are many."""
BUSY = 0.001
"""Seconds for which a generator that never waits may keep its event loop from everything else."""

GOING, ENDED, FAILED = "going", "ended", "failed"
"""What comes after the values of a batch: more; nothing; the exception, which is the answer to the request itself."""

Batch = tuple[list[Any], str]
"""Pickled values (`pickling.nested`), in order, and one of the above."""


class Outflow:
    """A bounded buffer between one generator and its caller, in one event loop.

    Values are pickled when they are yielded, and so may be changed afterwards. The memory of a long one is not copied:
    the generator goes on when it was sent, which is before anything else runs once `take` has returned.
    """

    def __init__(self, *, muted: bool = False, most: int = MOST, longest: float = LONGEST) -> None:
        """`muted`: every value is sent as None, because the caller only wants to know that there is one."""
        self._muted = muted
        self._most = most
        self._longest = longest
        self._clock = asyncio.get_running_loop().time
        self._since = 0.0  # when the first of the values came
        self._values: list[list[Any]] = []
        self._bytes = 0
        self._has_long = False
        self._state = GOING
        self._task: asyncio.Task[Any] | None = None
        self._closed = False
        self._asked = asyncio.Lock()  # whoever asks has it while it waits: answers have the order of the questions
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()

    # ------------------------------------------------------------ the generator

    async def run(self, work: Awaitable[None]) -> None:
        """Do the work that calls `fill`; raises what it raises, but for the cancellation by `close`."""
        self._task = asyncio.current_task()
        state = FAILED
        try:
            await work
            state = ENDED
        except asyncio.CancelledError:
            if not self._closed:
                raise
        finally:
            self._task = None
            self._state = state
            self._filled.set()

    async def fill(self, values: AsyncGenerator[Any, None]) -> None:
        """Take in all that it yields, as fast as there is room. The generator is closed when this ends, however."""
        rested = self._clock()
        async with contextlib.aclosing(values):
            async for value in values:
                if self._closed:  # the generator did not end by its cancellation
                    return
                self._add(None if self._muted else value)
                del value
                if self._asked.locked() or self._clock() - rested > BUSY:
                    await asyncio.sleep(0)
                    rested = self._clock()
                while self._is_full:
                    self._taken.clear()
                    await self._taken.wait()

    def _add(self, value: Any) -> None:
        frames = pickling.nested(value)
        if not self._values:
            self._since = self._clock()
        self._values.append(frames)
        self._bytes += len(frames[0])
        self._has_long = len(frames) > 1
        self._filled.set()

    @property
    def _is_full(self) -> bool:
        waiting = len(self._values)
        return waiting > 0 and (
            self._has_long
            or waiting >= self._most
            or self._bytes >= MOST_BYTES
            or self._clock() - self._since >= self._longest
        )

    # ------------------------------------------------------------ the caller

    async def take(self) -> Batch:
        """All values that are there, as soon as there is one or the generator has ended."""
        async with self._asked:
            while not self._values and self._state == GOING:
                self._filled.clear()
                await self._filled.wait()
            values, self._values = self._values, []
            self._bytes, self._has_long = 0, False
            self._taken.set()
            return values, self._state

    def close(self) -> None:
        """Nobody wants more: the generator is cancelled where it waits, or closed where it has yielded. Only once."""
        if not self._closed:
            self._closed = True
            if self._task is not None:
                self._task.cancel()
