"""Actors for tests on several hosts."""

import asyncio
import os
import socket
from typing import Any, NoReturn

from forgectl import ForgeActor, endpoint


class Counter(ForgeActor):
    """Counts, and says where it is."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.n = start

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


class Asker(ForgeActor):
    """Calls another actor, whose handle it is given."""

    @endpoint
    async def ask(self, other: Any, k: int) -> int:
        total: int = await other.add.call_one(k)
        return total

    @endpoint
    async def ask_to_end(self, other: Any) -> None:
        await other.end.call_one()
