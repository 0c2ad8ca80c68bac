"""What test_futures.py has scripts do with calls that they do not await at once."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import threading
from typing import Any

from forgectl import ActorDied, ForgeActor, Future, ValueMesh, endpoint
from players import Counter
from playing import HERE, Fast, exists, pids_of, play, raised, refused


class Waits(ForgeActor):
    """Waits for files, and for other calls."""

    def __init__(self) -> None:
        self.began: list[Any] = []
        self.open = asyncio.Event()

    @endpoint
    async def until(self, name: str) -> str:
        await exists(name)
        return name

    @endpoint
    async def make(self, name: str) -> str:
        (HERE / name).touch()
        return name

    @endpoint
    async def began_as(self, n: Any) -> Any:
        self.began.append(n)
        return n

    @endpoint
    async def order(self) -> list[Any]:
        return self.began

    @endpoint(concurrent=True)
    async def wait_open(self) -> str:
        await self.open.wait()
        return "open"

    @endpoint(concurrent=True)
    async def let_in(self) -> None:
        self.open.set()

    @endpoint
    async def fail(self) -> None:
        raise ValueError("nobody asked")


Idle = Waits.options(preload=[])


async def calls_first_and_awaits_later_run_together() -> None:
    one, other = await asyncio.gather(Idle.as_actor(), Idle.as_actor())
    waits = one.until.call("made")
    assert not waits.done()
    made = other.make.call_one("made")  # one after the other this would never end
    assert isinstance(waits, Future)
    assert (await waits).get(0) == await made == "made"
    assert list(await asyncio.gather(waits, made)) == [ValueMesh(["made"]), "made"]
    handle = await Fast.options(procs=2).as_actor()
    calls = [handle.add.call(1) for _ in range(100)]
    assert [list(values.values()) for values in await asyncio.gather(*calls)] == [[n, n] for n in range(1, 101)]


async def a_call_that_nobody_awaits_is_made() -> None:
    handle = await Fast.as_actor()
    for _ in range(10):
        handle.add.call(1)
    assert await handle.state.call_one() == 10


async def what_it_raises_is_logged_once() -> None:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("forgectl").addHandler(handler)
    logging.getLogger("forgectl").propagate = False
    handle = await Idle.as_actor()
    handle.fail.call()
    await raised(ValueError, handle.fail.call())
    await handle.order.call()
    gc.collect()
    assert records == ["waits.fail raised an exception that nobody retrieved"]


def plain_code_uses_get() -> None:
    handle = Idle.as_actor().get()
    assert handle.began_as.call(1).get().get(0) == 1
    assert handle.began_as.call_one(2).get(timeout=30) == 2
    late = handle.until.call_one("later")
    error = refused(TimeoutError, lambda: late.get(timeout=0.01))
    assert str(error) == "waits.until has not answered within 0.01 s"
    threading.Thread(target=(HERE / "later").touch).start()
    assert late.get() == "later"
    assert asyncio.run(handle.began_as.call_one(3)) == 3  # also as a coroutine
    service = Fast.options(num_replicas=2).as_service().get()
    assert service.add.route(1).get() == 1
    assert service.add.fanout(0).get() == [1, 0]
    service.shutdown().get()
    handle.shutdown().get()


async def get_in_an_event_loop_says_what_to_do() -> None:
    handle = await Idle.as_actor()
    call = handle.until.call_one("late")
    assert "use `await`" in str(refused(RuntimeError, call.get))
    (HERE / "late").touch()
    assert await asyncio.to_thread(call.get) == await call == "late"


def a_call_outlives_the_loop_that_it_was_made_in() -> None:
    async def main() -> tuple[Waits, Future[str]]:
        handle = await Idle.as_actor()
        return handle, handle.until.call_one("later")

    handle, call = asyncio.run(main())
    (HERE / "later").touch()
    assert call.get() == "later"
    loop = asyncio.new_event_loop()

    async def ask() -> Future[Any]:
        return handle.until.call_one("still later")

    stopped = loop.run_until_complete(ask())  # it is not closed, but stands still
    (HERE / "still later").touch()
    assert stopped.get() == "still later"
    loop.close()

    async def awaits() -> str:
        return await call

    assert asyncio.run(awaits()) == "later"


async def a_cancelled_call_leaves_its_rank_usable() -> None:
    handle = await Idle.as_actor()
    waits = handle.until.call_one("never")
    behind = handle.began_as.call_one(1)
    assert waits.cancel() and waits.cancelled() and not waits.cancel()
    await raised(asyncio.CancelledError, waits)
    await raised(asyncio.TimeoutError, asyncio.wait_for(handle.began_as.call_one(2), 0.05))
    (HERE / "never").touch()
    assert await behind == 1
    assert await handle.began_as.call_one(3) == 3


def calls_of_any_thread_come_in_their_order() -> None:
    """Those that are awaited at once, later, never, or are cancelled."""
    handle = Idle.as_actor().get()
    last = 200

    def plain() -> None:
        chance = random.Random(1)
        for n in range(last):
            call = handle.began_as.call(n)
            if chance.random() < 0.2:
                call.get()

    def looped() -> None:
        async def main() -> None:
            chance = random.Random(2)
            for n in range(1000, 1000 + last):
                call = handle.began_as.call(n)
                if chance.random() < 0.2:
                    await call
                elif chance.random() < 0.1:
                    call.cancel()
            await handle.order.call()

        asyncio.run(main())

    threads = [threading.Thread(target=work) for work in (plain, looped)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began = handle.order.call_one().get()
    mine, theirs = ([n for n in began if (n < 1000) is small] for small in (True, False))
    assert mine == list(range(last))
    assert theirs == sorted(theirs) and len(theirs) > last / 2


async def calls_while_the_mesh_restarts_are_sent_in_order_with_the_values_of_then() -> None:
    handle = await Idle.options(restart=1).as_actor()
    [pid] = pids_of(handle.mesh_name)
    waits = handle.until.call_one("a death")
    os.kill(pid, signal.SIGKILL)
    await raised(ActorDied, waits)
    values = [[n] for n in range(20)]
    calls = []
    for value in values:
        calls.append(handle.order.call_one() if value == [19] else handle.began_as.call_one(value))
        value[0] = -1
    found = await asyncio.gather(*calls)
    assert found[:19] == found[19] == [[n] for n in range(19)]


async def a_concurrent_endpoint_does_not_wait_for_its_turn() -> None:
    handle = await Idle.as_actor()
    waits, turn = handle.wait_open.call_one(), handle.until.call_one("turn")
    await handle.let_in.call_one()
    assert await waits == "open"
    (HERE / "turn").touch()
    assert await turn == "turn"


async def a_class_may_be_driven_by_tasks() -> None:
    """As TorchForge's users do: `asyncio.create_task(actor.endpoint.call(…))`."""
    handle = await Counter.options(preload=[]).as_actor()
    tasks = [asyncio.create_task(handle.add.call_one(1)) for _ in range(5)]
    assert [await task for task in tasks] == [1, 2, 3, 4, 5]


if __name__ == "__main__":
    play(globals())
