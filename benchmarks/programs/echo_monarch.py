"""An actor of plain Monarch that imports torch and answers."""

import asyncio
import os

from data import made
from monarch.actor import Actor, endpoint


class Echo(Actor):
    """Gives back what it is given."""

    def __init__(self):
        import torch  # noqa: F401  (in the rank, not in the script)

    @endpoint
    async def echo(self, n):
        return n

    @endpoint
    async def pid(self):
        return os.getpid()

    @endpoint
    async def sleep(self, seconds):
        await asyncio.sleep(seconds)

    @endpoint
    async def turn(self, n):
        await asyncio.sleep(0)
        return n

    @endpoint
    async def prepare(self, kind, size):
        self.data = made(kind, size)

    @endpoint
    async def take(self, data):
        return len(data)

    @endpoint
    async def give(self):
        return self.data
