"""Actors for tests on several hosts."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from forgectl import ForgeActor, endpoint


class Counter(ForgeActor):
    """Counts, and says where it is."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.n = start
        self.begun = self.ended = 0

    @endpoint
    async def add(self, k: int) -> int:
        self.n += k
        return self.n

    @endpoint
    async def where(self) -> str:
        return socket.gethostname()

    @endpoint
    async def sleep(self, seconds: float) -> None:
        print("sleeping", flush=True)
        await asyncio.sleep(seconds)

    @endpoint
    async def end(self) -> NoReturn:
        os._exit(3)

    @endpoint(concurrent=True)
    async def upwards(self) -> AsyncIterator[int]:
        """Yield numbers for ever."""
        self.begun += 1
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            self.ended += 1

    @endpoint(concurrent=True)
    async def streams(self) -> tuple[int, int]:
        """How many have begun, and ended."""
        return self.begun, self.ended


class Asker(ForgeActor):
    """Calls another actor, whose handle it is given."""

    @endpoint
    async def ask(self, other: Any, k: int) -> int:
        total: int = await other.add.call_one(k)
        return total

    @endpoint
    async def ask_to_end(self, other: Any) -> None:
        await other.end.call_one()

    @endpoint
    async def take(self, other: Any) -> None:
        """Take values for ever."""
        async for _ in other.upwards.stream():
            await asyncio.sleep(0)

    @endpoint(concurrent=True)
    async def leave(self) -> NoReturn:
        os._exit(3)


class Client(ForgeActor):
    """Uses services, and launches."""

    @endpoint
    async def routed(self, service: Counter, count: int, session: str | None = None) -> list[str]:
        return [await service.where.route(sess_id=session) for _ in range(count)]

    @endpoint
    async def fanned(self, service: Counter) -> list[str]:
        return await service.where.fanout()

    @endpoint
    async def launched(self, host: str) -> Counter:
        return await Counter.options(hosts=[host], preload=[], mesh_name="child").as_actor(1)

    @endpoint
    async def ended(self, handle: Counter) -> None:
        await handle.shutdown()
