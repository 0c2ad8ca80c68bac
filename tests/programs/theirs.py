"""Actors that are written with Monarch's names: of ours, and of Monarch's own."""

from __future__ import annotations

import asyncio

from monarch.actor import Actor, concurrent_endpoint, current_rank, current_size, endpoint

from forgectl import ForgeActor


class Theirs(ForgeActor):
    def __init__(self) -> None:
        super().__init__()
        self.seen = asyncio.Event()

    @endpoint
    async def where(self, offset: int) -> tuple[int, int, dict[str, int]]:
        return offset + current_rank()["procs"], current_rank().rank, dict(current_size())

    @endpoint
    def plain(self, word: str) -> str:
        return word * int(current_rank().rank)

    @concurrent_endpoint
    async def wait(self) -> str:
        await self.seen.wait()
        return "seen"

    @endpoint
    async def see(self) -> None:
        self.seen.set()


class Plain(Actor):
    @endpoint
    async def where(self) -> int:
        return int(current_rank().rank)


class Both(ForgeActor, Actor):
    """What somebody tries whom Monarch has told that it spawns an Actor alone."""
