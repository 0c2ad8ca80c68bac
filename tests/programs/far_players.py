"""Actors for tests on several hosts."""

import asyncio
import os
import socket

from forgectl import ForgeActor, endpoint


class Counter(ForgeActor):
    """Counts, and says where it is."""

    def __init__(self, start=0):
        super().__init__()
        self.n = start

    @endpoint
    async def add(self, k):
        self.n += k
        return self.n

    @endpoint
    async def where(self):
        return socket.gethostname()

    @endpoint
    async def sleep(self, seconds):
        print("sleeping", flush=True)
        await asyncio.sleep(seconds)

    @endpoint
    async def end(self):
        os._exit(3)


class Asker(ForgeActor):
    """Calls another actor, whose handle it is given."""

    @endpoint
    async def ask(self, other, k):
        return await other.add.call_one(k)

    @endpoint
    async def ask_to_end(self, other):
        await other.end.call_one()
