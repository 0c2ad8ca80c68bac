"""Waiting for a limited time, where asyncio.wait_for would lose a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from forgectl.system.tasks import within


def test_it_gives_what_the_work_gives_or_raises() -> None:
    async def failing() -> None:
        raise ValueError("no")

    assert asyncio.run(within(5, asyncio.sleep(0, "done"))) == "done"
    with pytest.raises(ValueError, match="no"):
        asyncio.run(within(None, failing()))


def test_work_that_takes_too_long_is_cancelled() -> None:
    async def main() -> None:
        work = asyncio.ensure_future(asyncio.sleep(3600))
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, work)
        assert work.cancelled()

    asyncio.run(main())


def test_work_that_ends_as_it_is_cancelled_has_its_value() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "done"
        return "never"

    assert asyncio.run(within(0.01, stubborn())) == "done"


def test_a_cancellation_that_comes_as_the_work_ends_is_not_lost() -> None:
    async def main() -> None:
        event = asyncio.Event()
        waiting = asyncio.ensure_future(within(3600, event.wait()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        event.set()
        await asyncio.sleep(0)  # the work has ended; who waits for it does not know yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
