"""Actors for tests on several hosts."""

import asyncio
import os
import socket
from typing import NoReturn

from forgectl import ForgeActor, endpoint
from forgectl.actor.handle import ActorHandle
from forgectl.actor.service_handle import ServiceHandle


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
    async def ask(self, other: ActorHandle, k: int) -> int:
        total: int = await other.add.call_one(k)
        return total

    @endpoint
    async def ask_to_end(self, other: ActorHandle) -> None:
        await other.end.call_one()


class Client(ForgeActor):
    """Uses services, and launches."""

    @endpoint
    async def routed(self, service: ServiceHandle, count: int, session: str | None = None) -> list[str]:
        return [await service.where.route(sess_id=session) for _ in range(count)]

    @endpoint
    async def fanned(self, service: ServiceHandle) -> list[str]:
        return await service.where.fanout()

    @endpoint
    async def launched(self, host: str) -> ActorHandle:
        return await Counter.options(hosts=[host], preload=[], mesh_name="child").as_actor(1)

    @endpoint
    async def ended(self, handle: ActorHandle) -> None:
        await handle.shutdown()
