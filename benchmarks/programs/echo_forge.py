"""An actor of forgectl that imports torch and answers."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sized

from data import made

from forgectl import ForgeActor, endpoint


class Echo(ForgeActor):
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
    async def upto(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            yield i

    @endpoint
    async def clock(self, count: int) -> AsyncIterator[float]:
        """When each value was yielded; the next one only when the one before has surely come."""
        for _ in range(count):
            await asyncio.sleep(0.005)
            yield time.monotonic()

    @endpoint
    async def prepare(self, kind: str, size: int) -> None:
        self.data = made(kind, size)

    @endpoint
    async def take(self, data: Sized) -> int:
        return len(data)

    @endpoint
    async def give(self) -> Sized:
        return self.data


class Caller(ForgeActor):
    """Uses a service as the driver does."""

    @endpoint
    async def seconds(self, service: Echo, count: int) -> float:
        """Of one of so many routed calls, one after the other."""
        began = time.perf_counter()
        for i in range(count):
            await service.echo.route(i)
        return (time.perf_counter() - began) / count

    @endpoint
    async def rate(self, service: Echo, count: int) -> float:
        """Answers a second of calls that are all begun before the first is awaited."""
        began = time.perf_counter()
        await asyncio.gather(*(service.echo.route(i) for i in range(count)))
        return count / (time.perf_counter() - began)
