"""Waiting for a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class TooSlow(Exception):
    """Something took longer than it may; not TimeoutError, which the work may raise itself."""


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """The result of `work`. Raises TooSlow after so many seconds, even where `work` ignores its cancellation.

    asyncio.wait_for would lose a cancellation that comes just as the work ends (before Python 3.12).
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TooSlow
        return task.result()
    finally:
        if task.cancel():
            await asyncio.sleep(0)  # it learns of that now, so a generator that it read can be closed
