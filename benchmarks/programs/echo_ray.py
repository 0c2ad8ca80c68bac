"""The same for Ray."""

import asyncio
import os


class Echo:
    """Gives back what it is given."""

    def __init__(self) -> None:
        import torch  # noqa: F401  (in the rank, not in the script)

    async def echo(self, n: int) -> int:
        return n

    async def pid(self) -> int:
        return os.getpid()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
