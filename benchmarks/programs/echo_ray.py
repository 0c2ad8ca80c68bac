"""The same for Ray."""

import asyncio
import os


class Echo:
    """Gives back what it is given."""

    def __init__(self):
        import torch  # noqa: F401  (in the rank, not in the script)

    async def echo(self, n):
        return n

    async def pid(self):
        return os.getpid()

    async def sleep(self, seconds):
        await asyncio.sleep(seconds)
