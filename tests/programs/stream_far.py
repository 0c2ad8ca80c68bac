"""A driver whose actors, of far_players.py, are on two hosts: they stream to it, and to each other."""

from __future__ import annotations

import asyncio
import contextlib

import forgectl


async def main() -> None:
    a, b = forgectl.get("a"), forgectl.get("b")

    async def come_to(begun: int, ended: int) -> None:
        while await a.streams.call_one() != (begun, ended):
            await asyncio.sleep(0.01)

    expected = 0
    async for value in a.upwards.stream():
        assert value == expected
        expected += 1
        if expected == 5000:
            break
    await come_to(1, 1)
    print("left after", expected, flush=True)
    taking = b.take.call_one(a)
    await come_to(2, 1)
    for call in (b.leave.call_one(), taking):
        with contextlib.suppress(forgectl.ActorDied):
            await call
    await come_to(2, 2)
    print("ended with its caller", flush=True)


asyncio.run(main())
