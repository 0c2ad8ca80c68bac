"""What drivers do that are restarted; see playing.py for how one is chosen. They say `start N …` once they are up."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import forgectl
from forgectl import ActorDied, ForgeActor, endpoint, service_endpoint
from players import Counter, SlowSetup
from playing import HERE, Fast, play

START = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
"""How often this driver was restarted before."""


def note(where: str, text: object) -> None:
    """Add a line to a file: a SIGKILL leaves it."""
    with (HERE / where).open("a") as file:
        file.write(f"{text}\n")


def say(*words: object) -> None:
    print("start", START, *words, flush=True)


async def count_for_ever() -> None:
    """Call all that there is at once, and note each answer."""
    named, bare, other, pool = await asyncio.gather(
        Fast.options(mesh_name="named", procs=2).as_actor(0),
        Fast.as_actor(100),  # these two have no names, and are told apart by their order
        Fast.as_actor(200),
        Fast.options(mesh_name="pool", num_replicas=2).as_service(0),
    )
    assert (await other.add.call_one(0), await bare.add_plain.call_one(0) >= 100) == (200, True)
    told = forgectl.get("told", Counter)

    async def count(what: str, endpoint: Any) -> None:
        while True:
            await endpoint(1)
            note("answered", what)

    async def stream() -> None:
        async for value in bare.count.stream(10**9):  # no other endpoint runs there meanwhile
            if value == 10:
                say(*(h.adopted for h in (named, bare, other, pool, told)))

    calls = ("named", named.add.call), ("named", named.add.call), ("pool", pool.add.route), ("told", told.add.call)
    await asyncio.gather(stream(), *(count(what, call) for what, call in calls))


async def be_done() -> None:
    """The second driver adopts one of two, and ends."""
    one = await Fast.options(mesh_name="one").as_actor(1)
    if START == 0:
        await Fast.options(mesh_name="two").as_actor(2)
        os.kill(os.getpid(), signal.SIGKILL)
    say(one.adopted, await one.add.call_one(1))


async def ask_for_more(change: str) -> None:
    """The second driver launches the same with a change."""
    changes: dict[str, Any] = {"procs": 2} if change == "options" and START else {}
    start: Any = "another" if change == "arguments" and START else ["the same", {"c"}]
    cls = Other if change == "class" and START else Fast
    kept = await cls.options(mesh_name="kept", preload=[], **changes).as_actor(start)
    say(kept.adopted)
    await asyncio.Event().wait()


class Other(Counter):
    """Another class of the same form."""


async def adopt_equals() -> None:
    """Arguments that are equal, but not of the same pickle: sets of text, handles, one object twice."""
    first = await Fast.options(mesh_name="first").as_actor(1)
    words = [str(n) for n in range(50)]
    word = "".join(words)
    twice = [word, word] if START else [word, "".join(words)]
    start: Any = (set(words), first.slice(procs=0), twice, {"cls": Other, "do": say})
    second = await Fast.options(mesh_name="second").as_actor(start=start)
    say(first.adopted, second.adopted)
    await asyncio.Event().wait()


async def go_on(name: str = "kept", restart: str = "0") -> None:
    """Launch a mesh and a service, and stay."""
    kept = await Fast.options(mesh_name=name, restart=int(restart), procs=2).as_actor(5)
    await Fast.options(mesh_name="pool").as_service(5)
    say(kept.adopted)
    await asyncio.Event().wait()


async def set_up_slowly() -> None:
    slow = await SlowSetup.options(mesh_name="slow", preload=[], procs=2).as_actor(str(HERE))
    say(slow.adopted)
    await asyncio.Event().wait()


async def fail() -> None:
    await Fast.options(mesh_name="kept").as_actor()
    raise RuntimeError(f"no luck at start {START}")


class Pooled(Counter):
    @service_endpoint(batch_size=2, batch_timeout=0.001)
    async def double(self, ns: list[int]) -> list[int]:
        return [2 * n for n in ns]


class Lead(ForgeActor):
    """Launches a helper and a service, and calls services for ever: its own, and that of the driver."""

    def __init__(self, pool: Pooled) -> None:
        self.pool = pool
        self.calls = self.unknown = 0

    @endpoint
    async def setup(self) -> None:
        self.helper = await Fast.options(restart=3).as_actor(7)
        self.own = await Pooled.options(num_replicas=2, mesh_name="own", preload=[]).as_service(0)
        self.session = await self.pool.start_session()
        self.task = asyncio.create_task(self.call())

    async def call(self) -> None:
        while True:
            mine = await self.pool.whoami.route(sess_id="mine"), await self.pool.whoami.route(sess_id=self.session)
            self.went = [facts["mesh"] for facts in mine]
            await self.own.add.route(1)
            await self.own.whoami.fanout()
            try:
                await self.own.double.route(1)
            except ActorDied:  # the driver passes on the calls of batches: nobody knows whether this one ran
                self.unknown += 1
            self.calls += 1

    @endpoint(concurrent=True)
    async def report(self) -> dict[str, Any]:
        ended = repr(self.task.exception()) if self.task.done() else None
        return {"calls": self.calls, "went": self.went, "unknown": self.unknown, "ended": ended}

    @endpoint(concurrent=True)
    async def helped(self) -> list[int]:
        facts = await self.helper.whoami.call_one()
        return [await self.helper.add.call_one(1), facts["pid"]]

    @endpoint(concurrent=True)
    async def end(self) -> None:
        await self.helper.shutdown()
        self.task.cancel()
        await self.own.shutdown()


async def have_a_lead() -> None:
    pool = await Pooled.options(num_replicas=2, mesh_name="pool", preload=[]).as_service(0)
    if START == 0:
        await pool.scale(3)
    lead = await Lead.options(mesh_name="lead", preload=[]).as_actor(pool)
    say(pool.adopted, lead.adopted, *sorted(f["mesh"] for f in await pool.whoami.fanout()))
    await asyncio.Event().wait()


if __name__ == "__main__":
    play(globals())
