"""A script that drives an actor: when it starts, the actors that the spec declares are up."""

import asyncio

from darts import Darts

import forgectl

DARTS = 50_000


async def main() -> None:
    """Estimate pi from the darts that all processes throw."""
    darts = forgectl.get("darts", Darts)
    hits = thrown = 0
    for _ in range(4):
        by_rank = list((await darts.throw.call(DARTS)).values())
        hits, thrown = hits + sum(by_rank), thrown + DARTS * len(by_rank)
        print(f"{thrown} darts by {len(by_rank)} processes: pi is about {4 * hits / thrown:.3f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
