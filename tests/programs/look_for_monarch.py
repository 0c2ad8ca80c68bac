"""A script with an actor, neither of which must have imported monarch."""

from __future__ import annotations

import asyncio
import sys

from forgectl import ForgeActor, endpoint


class Look(ForgeActor):
    @endpoint
    async def look(self) -> list[str]:
        return sorted(m for m in sys.modules if m.partition(".")[0] == "monarch")


async def main() -> None:
    look = await Look.options(preload=[]).as_actor()
    assert await look.look.call_one() == []
    assert not any(m.partition(".")[0] == "monarch" for m in sys.modules)


asyncio.run(asyncio.wait_for(main(), 60))
