"""An actor of plain Monarch that imports torch and answers."""
# mypy: allow-subclassing-any, allow-untyped-decorators

import asyncio
import os
from collections.abc import Sized

from data import made
from monarch.actor import Actor, endpoint


class Echo(Actor):
    """Gives back what it is given."""

    def __init__(self) -> None:
        import torch  # noqa: F401  (in the rank, not in the script)

    @endpoint
    async def echo(self, n: int) -> int:
        return n

    @endpoint
    async def pid(self) -> int:
        return os.getpid()

    @endpoint
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @endpoint
    async def turn(self, n: int) -> int:
        await asyncio.sleep(0)
        return n

    @endpoint
    async def prepare(self, kind: str, size: int) -> None:
        self.data = made(kind, size)

    @endpoint
    async def take(self, data: Sized) -> int:
        return len(data)

    @endpoint
    async def give(self) -> Sized:
        return self.data
