"""A driver whose actors, of far_players.py, are on two hosts."""

from __future__ import annotations

import asyncio

import forgectl


async def main() -> None:
    a, b = forgectl.get("a"), forgectl.get("b")
    print("asked", await b.ask.call_one(a, 3), flush=True)
    try:
        await b.ask_to_end.call_one(a)
    except Exception as e:
        print(type(e).__name__, e, flush=True)


asyncio.run(main())
