"""An actor of plain Monarch that imports torch and answers."""

import asyncio
import os

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
