"""A script whose actors say what they were preloaded with: their environment, and the threads of their fork server."""

from __future__ import annotations

import asyncio
import os

from forgectl import ForgeActor, endpoint


class Teller(ForgeActor):
    @endpoint
    def tell(self) -> tuple[str, int]:
        return os.environ["MORE"], len(os.listdir(f"/proc/{os.getppid()}/task"))


async def main() -> None:
    actor = await Teller.options(procs=2, preload=["once"], env={"MORE": "more"}).as_actor()
    print(list((await actor.tell.call()).values()))


asyncio.run(main())
