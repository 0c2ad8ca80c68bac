"""Pairs of actors that wait for each other: a driver, `hang_actors.py FOLDER MESH…`, and of each a MESH-peer."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import forgectl
from forgectl import ForgeActor, endpoint


class Waiter(ForgeActor):
    """Asks another one, which may be asking it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    @endpoint
    async def waits_back(self, other: Any) -> int:
        await self.asked.wait()
        return int(await other.answer.call_one())

    @endpoint
    async def answer(self) -> int:
        return 1

    @endpoint(concurrent=True)
    async def go(self) -> None:
        self.asked.set()


async def main(folder: Path, meshes: list[str]) -> None:
    """Have each pair wait for each other."""
    calls = []
    for mesh in meshes:
        one, other = forgectl.get(mesh), forgectl.get(f"{mesh}-peer")
        calls += [one.waits_back.call_one(other), other.waits_back.call_one(one)]
        await one.go.call_one()
        await other.go.call_one()
        (folder / mesh).touch()
    await asyncio.gather(*calls)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
