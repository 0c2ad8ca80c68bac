"""What `stream` gives: values as they come, for `async for` and for plain code."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Generic, TypeVar

from forgectl.actor.inflow import Inflow, Over, RoutedInflow
from forgectl.errors import ActorDied, UnreachableError
from forgectl.system.loops import in_loop, plain_loop, running_loop, stands_still

R = TypeVar("R")


class Stream(Generic[R]):
    """What `stream` gives: `async for value in handle.endpoint.stream(…)`, or plain `for` where no event loop runs.

    It begins when it is made. A generator is at most 1,024 values ahead of whoever iterates, a slow one or one with
    long values a few; then it waits. Leaving the loop early ends it: at once if nobody else holds the stream, else by
    `await aclose()` (or `async with contextlib.aclosing(stream)`), which also waits until its `finally` blocks have
    run. So does cancelling the task that waits for a value. Every exception ends the stream.
    """

    def __init__(self, inflow: Inflow | RoutedInflow, timeout: float | None = None) -> None:
        """`timeout`: seconds to wait for each value."""
        self._inflow = inflow
        self._timeout = timeout
        self._pid = os.getpid()
        self._loop = plain_loop()

    def __aiter__(self) -> Stream[R]:
        """Itself."""
        return self

    async def __anext__(self) -> R:
        """The next value."""
        self._check_alone()
        try:
            while (found := self._inflow.pop()) is None:
                await self._arrival()
        except Over:
            self._inflow.leave()
            raise StopAsyncIteration from None
        except BaseException:
            self._inflow.leave()
            raise
        value: R = found[0]
        return value

    async def _arrival(self) -> None:
        waiter, timeout = self._inflow.wait(), self._timeout
        if timeout is None:
            await waiter
            return
        late = TimeoutError(f"{self._inflow.label} has not yielded within {timeout:g} s")
        timer = asyncio.get_running_loop().call_later(timeout, waiter.fail, late)
        try:
            await waiter
        finally:
            timer.cancel()

    async def aclose(self) -> None:
        """Leave it, and wait until the generators have ended. Raises what their `finally` blocks raise."""
        if self._inflow.leave():
            with contextlib.suppress(ActorDied, UnreachableError):
                await asyncio.shield(self._inflow.opened)

    def __iter__(self) -> Stream[R]:
        """Itself, for plain code; raises RuntimeError in an event loop."""
        if (loop := running_loop()) is not None and not stands_still(loop):
            raise RuntimeError(f"{self._inflow.label}: `for` would block this event loop; use `async for`")
        return self

    def __next__(self) -> R:
        """The next value, in plain code."""
        self._check_alone()
        try:
            while (found := self._inflow.pop()) is None:
                self._inflow.wait().get(self._timeout)
        except Over:
            self._inflow.leave()
            raise StopIteration from None
        except BaseException:
            self._inflow.leave()
            raise
        value: R = found[0]
        return value

    def close(self) -> None:
        """The same as `aclose`, in plain code."""
        if self._inflow.leave():
            with contextlib.suppress(ActorDied, UnreachableError):
                self._inflow.opened.get()

    def _check_alone(self) -> None:
        if self._inflow.is_waited_for:
            raise RuntimeError(f"{self._inflow.label}: another task waits for the next value already")

    def __reduce__(self) -> Any:
        raise TypeError(f"{self._inflow.label} is a stream under way; iterate over it, and hand on its values")

    def __del__(self) -> None:
        # In another thread: garbage is collected anywhere, also where this one holds a lock. A forked child owns none.
        if hasattr(self, "_loop") and self._pid == os.getpid():
            in_loop(self._loop, self._inflow.leave)
