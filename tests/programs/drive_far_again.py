"""A driver that is killed. Its actors, of far_players.py, on other hosts stream to it, and call a service by it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import forgectl

START = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


async def main() -> None:
    counter, client, pool = (forgectl.get(name) for name in ("counter", "client", "pool"))
    calling = client.routed.call_one(pool, 10**6)
    print("start", START, counter.adopted, client.adopted, pool.adopted, flush=True)
    async for value in counter.upwards.stream():
        if value == 100:
            print("streams", START, await counter.streams.call_one(), flush=True)
            break
    if START < 3:
        await counter.add.call_one(1)
        stays = counter.upwards.stream()
        await anext(stays)
        os.kill(os.getpid(), signal.SIGKILL)
    while (await counter.streams.call_one()) != (7, 7):  # three of them ended with their drivers
        await asyncio.sleep(0.05)
    assert not calling.done()
    Path("done").write_text(f"{await counter.add.call_one(0)} {sorted(await pool.where.fanout())}")


asyncio.run(main())
