"""What test_rank_output.py has scripts do: their ranks print, and they show it."""

from __future__ import annotations

import asyncio
import os
import sys

from forgectl import ForgeActor, endpoint
from forgectl.actor.driver.run_client import RunClient, living_run_client
from playing import play, raised


class Teller(ForgeActor):
    """Prints."""

    def __init__(self, first: str = "made") -> None:
        print(first)

    @endpoint
    async def tell(self, text: str) -> None:
        print(text)

    @endpoint
    async def log(self, text: str) -> None:
        self.logger.warning(text)

    @endpoint
    async def flood(self, lines: int) -> None:
        for n in range(lines):
            sys.stdout.write(f"{n:099}\n")

    @endpoint
    async def leave(self, text: str) -> None:
        print(text, end="", flush=True)
        os._exit(3)


class Broken(ForgeActor):
    def __init__(self) -> None:
        print("before the error")
        raise ValueError("no")


Tells = Teller.options(preload=[])


async def prints_and_ends() -> None:
    print("mine")
    teller = await Tells.options(procs=2).as_actor()
    await teller.tell.call("twice\nas two lines")
    await teller.log.call("logged")
    await teller.tell.call("\x1b[32mgreen\x1b[0m \x1b]0;a title\x07and the last")


async def fails_to_begin() -> None:
    await raised(ValueError, Broken.options(preload=[]).as_actor())


async def dies_in_a_line() -> None:
    teller = await Tells.options(restart=1).as_actor("begun")
    await raised(Exception, teller.leave.call("no newline"))
    await teller.tell.call("again")


class Boss(ForgeActor):
    @endpoint
    async def launch_two(self) -> None:
        await Tells.options(mesh_name="loud").as_actor()
        await Tells.options(mesh_name="silent", logs=False).as_actor("quiet")
        await Tells.options(mesh_name="served").as_service()
        await Tells.options(mesh_name="unheard", logs=False).as_service("quiet")


async def has_an_actor_launch() -> None:
    await (await Boss.options(preload=[]).as_actor()).launch_two.call_one()


async def mutes_one_of_two() -> None:
    await asyncio.gather(Tells.options(mesh_name="loud").as_actor(), Tells.options(logs=False).as_actor("quiet"))
    await Tells.options(mesh_name="served", num_replicas=2).as_service()
    await Tells.options(mesh_name="silent", num_replicas=2, logs=False).as_service("quiet")


async def uses_a_name_again() -> None:
    for text in ("one", "other"):
        teller = await Tells.options(mesh_name="again").as_actor(text)
        await teller.shutdown()


async def floods(lines: str) -> None:
    teller = await Tells.as_actor()
    await teller.flood.call(int(lines))


async def stops_waiting_for_its_reader() -> None:
    """Nobody reads stderr: far more than fits a pipe is printed, and calls go on."""
    teller = await Tells.as_actor()
    await teller.flood.call(20_000)
    for _ in range(100):
        await teller.tell.call("on")


def sets_out_anew_in_a_child() -> None:
    asyncio.run(prints_and_ends())
    run = living_run_client()
    assert isinstance(run, RunClient)
    if (pid := os.fork()) == 0:
        asyncio.run(uses_a_name_again())
        sys.exit(0)  # the child's own run is shown, and ends, with the child
    assert os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":
    play(globals())
