"""What drivers do that are restarted; see playing.py for how one is chosen."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

import forgectl
from forgectl import ActorDied
from players import Counter
from playing import HERE, Fast, exists, play

START = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
"""How often this driver was restarted before."""


def acknowledge(what: str) -> None:
    """Write down what has been answered, so that a SIGKILL leaves it."""
    with (HERE / "acknowledged").open("a") as file:
        file.write(f"{what}\n")


async def launch() -> tuple[Counter, Counter, Counter]:
    """A named actor, one without a name, and a service; at the same time."""
    named = Fast.options(mesh_name="named", procs=2).as_actor(0)
    bare = Fast.as_actor(100)
    service = Fast.options(mesh_name="pool", num_replicas=2).as_service(0)
    return await named, await bare, await service


async def count_for_ever() -> None:
    handles = await launch()
    print("start", START, *(h.adopted for h in handles), flush=True)
    named, bare, service = handles

    async def add() -> None:
        while True:
            await named.add.call(1)
            acknowledge("named")

    async def route() -> None:
        while True:
            await service.add.route(1)
            acknowledge("pool")

    async def stream() -> None:
        while True:
            async for _ in bare.count.stream(1000):
                pass

    await asyncio.gather(add(), add(), route(), route(), stream())


if __name__ == "__main__":
    play(globals())
