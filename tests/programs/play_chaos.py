"""What tests/faults/chaos.py has scripts do while parts of their runs are killed."""

from __future__ import annotations

import asyncio
import json

from forgectl import ActorDied
from playing import HERE, Fast, play


async def call_for_ever() -> None:
    """Calls two actors until there is a file `end`; prints the pids that answered whenever they are others."""
    pair = await Fast.options(procs=2, mesh_name="pair", restart={"max": 100000, "backoff": 0}).as_actor()
    print("up", flush=True)
    while not (HERE / "end").exists():
        try:
            pids = [who["pid"] for who in (await pair.whoami.call()).values()]
        except ActorDied:
            continue
        print(json.dumps(pids), flush=True)
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    play(globals())
