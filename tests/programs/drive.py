"""What drivers of specs do; see playing.py for how one is chosen."""

from __future__ import annotations

import asyncio
import sys

import forgectl
from forgectl import ActorDied, ForgeError
from forgectl.errors import NotFoundError
from players import BadSetup, BadStart, Counter, DeadSetup, SlowSetup
from playing import HERE, Fast, exists, play, raised, refused


async def get_what_the_spec_declares() -> None:
    counter = forgectl.get("counter")
    assert list((await counter.add.call(2)).values()) == [7, 7]
    more = await Counter.options(preload=[], mesh_name="more").as_actor(1)
    assert await more.ask.call_one(counter, "add", 1) == [8, 8]
    error = refused(ForgeError, lambda: forgectl.get("conter"))
    assert "no actor or service 'conter'; it declares counter" in str(error), error
    print("all is well", flush=True)
    await exists("end")
    sys.exit(3)


async def be_done() -> None:
    print((await forgectl.get("counter").add.call(1)).item(procs=1))


async def fail() -> None:
    await forgectl.get("counter").fail.call()


async def outlive_a_mesh() -> None:
    counter = forgectl.get("counter")
    death = await raised(ActorDied, counter.die.call("_exit", 1))
    print(death.rank, death.rank_exit_code, (await counter.add.call(1)).item(procs=0))


async def launch_by_code() -> None:
    print(await (await Counter.options(preload=[]).as_actor(2)).add.call_one(3))


async def launch_meshes_with_gpus() -> None:
    Gpus = Fast.options(procs=2, with_gpus=True)
    for cls, kind in ((BadStart, ValueError), (BadSetup, LookupError), (DeadSetup, ActorDied)):
        await raised(kind, cls.options(preload=[], procs=2, with_gpus=True).as_actor())
    for _ in range(2):
        c = await Gpus.as_actor()
        assert list((await c.env.call("CUDA_VISIBLE_DEVICES", "LOCAL_RANK")).values()) == [["0,1", "0"], ["0,1", "1"]]
        error = await raised(ForgeError, Fast.options(with_gpus=True, mesh_name="more").as_actor())
        assert (error.exit_code, "GPU 0, 1 of local by mesh counter of this run" in str(error)) == (75, True), error
        never = await raised(ForgeError, Fast.options(procs=3, with_gpus=True).as_actor())
        assert (never.exit_code, "actors.counter-2.procs: wants 3 GPUs" in str(never)) == (64, True), never
        await c.shutdown()
    task = asyncio.ensure_future(SlowSetup.options(preload=[], procs=2, with_gpus=True).as_actor(str(HERE)))
    await exists("waiting-0", "waiting-1")
    task.cancel()
    await raised(asyncio.CancelledError, task)
    last = await Gpus.as_actor()
    print("all is well", flush=True)
    await last.hang.call()


async def use_a_service() -> None:
    s = forgectl.get("work")
    error = refused(NotFoundError, lambda: forgectl.get("wrk"))
    assert "it declares work" in str(error), error
    for f in await s.who.fanout():
        print("has", f["mesh"], f["size"], f["start"])
    print("doubled", await asyncio.gather(*(s.double.route(n) for n in range(4))))
    await s.scale(3)
    print("now", [f["mesh"] for f in await s.who.fanout()])


if __name__ == "__main__":
    play(globals())
