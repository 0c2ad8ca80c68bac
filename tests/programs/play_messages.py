"""What test_messages.py has scripts do that call actors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from typing import Any

import zmq

from forgectl import ActorDied, ForgeActor, ForgeError, endpoint
from forgectl.actor.foreign_mesh import ForeignMesh
from forgectl.actor.handle import ActorHandle
from forgectl.actor.origin import Origin
from forgectl.messages.calling import WINDOW, exchange
from forgectl.messages.frames import CALL, CAST, pack, socket_name
from players import Counter
from playing import HERE, Fast, exists, pids_of, play, raised, ranks_of


def calls_of_several_threads_have_one_order_on_every_rank() -> None:
    class Order(ForgeActor):
        def __init__(self) -> None:
            self.log: list[tuple[int, int]] = []

        @endpoint
        async def note(self, who: int, k: int) -> None:
            self.log.append((who, k))

        @endpoint
        async def read(self) -> list[tuple[int, int]]:
            return self.log

    async def launch() -> Order:
        return await Order.options(preload=[], procs=4).as_actor()

    async def many(order: Order, who: int) -> None:
        await asyncio.gather(*(order.note.call(who, k) for k in range(200)))

    order = asyncio.run(launch())
    threads = [threading.Thread(target=lambda w=w: asyncio.run(many(order, w))) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def read() -> list[Any]:
        return list((await order.read.call()).values())

    first, *others = asyncio.run(read())
    assert len(first) == 800
    for other in others:
        assert other == first
    for who in range(4):
        assert [k for w, k in first if w == who] == list(range(200))


async def a_flood_of_calls_waits_at_the_caller_and_loses_none() -> None:
    class Slow(ForgeActor):
        def __init__(self) -> None:
            self.log: list[int] = []

        @endpoint
        async def hold(self) -> None:
            await asyncio.sleep(0)
            while not (HERE / "go").exists():
                await asyncio.sleep(0.01)

        @endpoint
        async def note(self, k: int) -> int:
            self.log.append(k)
            return k

        @endpoint
        async def read(self) -> tuple[bool, int]:
            return self.log == sorted(self.log), len(self.log)

    slow = await Slow.options(preload=[]).as_actor()
    holding = asyncio.ensure_future(slow.hold.call_one())
    await asyncio.sleep(0)
    calls = [asyncio.ensure_future(slow.note.call_one(k)) for k in range(20_000)]
    await asyncio.sleep(0)
    [line] = exchange(ranks_of(slow)._here)._lines.values()
    assert line.under_way == WINDOW and len(line.waiting) == 20_001 - WINDOW, (line.under_way, len(line.waiting))
    calls[15_000].cancel()
    (HERE / "go").touch()
    await holding
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [f for f in found if not isinstance(f, BaseException)] == [k for k in range(20_000) if k != 15_000]
    assert await slow.read.call_one() == (True, 19_999)
    assert line.under_way == 0 and not line.waiting


async def a_flood_of_broadcasts_blocks_until_there_is_room() -> None:
    c = await Fast.options(procs=2).as_actor()
    for _ in range(20_000):
        c.add.broadcast(1)
    assert list((await c.state.call()).values()) == [20_000] * 2

    waiting = asyncio.ensure_future(c.hang.call(str(HERE / "hangs")))
    await exists("hangs-0", "hangs-1")
    sent: list[int] = []

    def flood() -> None:
        for _ in range(3 * WINDOW):
            c.add.broadcast(1)
            sent.append(1)

    thread = threading.Thread(target=flood)
    thread.start()
    while len(sent) < 2 * WINDOW - 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert thread.is_alive() and len(sent) < 2 * WINDOW + 2, len(sent)
    os.kill(pids_of("counter")[0], signal.SIGKILL)
    await raised(ActorDied, waiting)
    await asyncio.to_thread(thread.join)
    assert len(sent) == 3 * WINDOW


def a_broadcast_from_plain_code() -> None:
    async def launch() -> Counter:
        return await Fast.options(procs=2).as_actor()

    c = asyncio.run(launch())
    for _ in range(5000):
        c.add.broadcast(1)

    async def read() -> list[Any]:
        return list((await c.state.call()).values())

    assert asyncio.run(read()) == [5000, 5000]


async def nothing_is_kept_of_calls_that_are_over() -> None:
    c = await Fast.options(procs=2).as_actor()
    late = c.options(timeout=0.05)
    for _ in range(50):
        await c.add.call(1)
    for _ in range(20):
        await raised(ValueError, c.fail.call())
    await raised(TimeoutError, late.hang.call())
    ranks = ranks_of(c)
    way = exchange(ranks._here)
    while len(way._under_way) > 2:  # an error of one rank does not wait for the other's
        await asyncio.sleep(0.01)
    assert not ranks._calls and len(way._under_way) == 2  # the two that hang
    await c.shutdown(0)
    assert not way._under_way and not way._lines and not way._connected, vars(way)


async def ask(handle: Counter, k: int) -> Any:
    """What a call gives, or who has died."""
    try:
        return list((await handle.add.call(k)).values())
    except ActorDied as e:
        return f"{e.mesh} {e.rank}"


def call(handle: Counter, k: int) -> Any:
    return asyncio.run(ask(handle, k))


def a_process_that_the_script_starts_may_call() -> None:
    async def launch() -> Counter:
        return await Fast.options(procs=2).as_actor()

    async def kill(c: Counter) -> None:
        await raised(ActorDied, c.die.call("_exit", 1))

    c = asyncio.run(launch())
    for k, context in enumerate((multiprocessing.get_context("fork"), multiprocessing.get_context("spawn"))):
        pool = concurrent.futures.ProcessPoolExecutor(1, context)
        assert pool.submit(call, c, 1).result(30) == [1 + 4 * k] * 2
        assert call(c, 1) == [2 + 4 * k] * 2
        assert pool.submit(call, c, 1).result(30) == [3 + 4 * k] * 2
        assert call(c, 1) == [4 + 4 * k] * 2
        pool.shutdown()
    pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    assert pool.submit(call, c, 1).result(30) == [9, 9]
    asyncio.run(kill(c))
    assert pool.submit(call, c, 1).result(30) == "counter 1"
    pool.shutdown()


async def a_plain_endpoint_calls_others_in_loops_of_its_own() -> None:
    class Plain(Counter):
        @endpoint
        def ask_from_thread(self, other: Counter, times: int) -> list[list[int]]:
            async def ask() -> list[int]:
                return list((await other.add.call(1)).values())

            return [asyncio.run(ask()) for _ in range(times)]

    a = await Fast.options(procs=2, mesh_name="a").as_actor()
    b = await Plain.options(preload=[]).as_actor()
    assert await b.ask_from_thread.call_one(a, 5) == [[k, k] for k in range(1, 6)]


async def a_handle_of_another_run_says_so() -> None:
    c: Any = await Fast.as_actor()
    name, interface, procs, origin, generation, places = c._mesh.foreign().__reduce__()[1]
    elsewhere = Origin("other-0000", "another machine", "/nowhere", "/nowhere/agent")

    other = ActorHandle(ForeignMesh(name, interface, procs, elsewhere, generation, places))
    error = await raised(ForgeError, other.add.call(1))
    assert "a handle of run other-0000 cannot be used here" in str(error)
    gone = Origin("other-0000", origin.machine, "/nowhere", "/nowhere/agent")
    other = ActorHandle(ForeignMesh(name, interface, procs, gone, generation, places))
    death = await raised(ActorDied, other.add.call(1))
    assert "its run has ended" in str(death)


async def arrays_and_tensors_arrive_writable_and_their_senders_may_go_on() -> None:
    import numpy as np
    import torch

    class Holder(ForgeActor):
        def __init__(self, weights: Any) -> None:
            self.weights = weights

        @endpoint
        async def step(self) -> Any:
            before = self.weights
            self.weights += 1  # in place, while the answer is on its way
            return before

        @endpoint
        async def give(self) -> Any:
            return self.weights

        @endpoint
        async def scaled(self, array: Any, tensor: Any) -> tuple[Any, Any]:
            array *= 2
            tensor *= 2
            return array, tensor

    holder = await Holder.options(preload=[]).as_actor(torch.zeros(4_000_000))
    answers = await asyncio.gather(*(x for k in range(6) for x in (holder.give.call_one(), holder.step.call_one())))
    for k, (given, stepped) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
        assert torch.equal(given, torch.full_like(given, k)), (k, given.min(), given.max())
        assert torch.equal(stepped, torch.full_like(stepped, k + 1))
    array, tensor = await holder.scaled.call_one(np.ones(100_000), torch.ones(100_000, dtype=torch.bfloat16))
    array += 1
    tensor += 1
    assert (array == 3).all() and (tensor == 3).all() and tensor.dtype == torch.bfloat16


async def what_was_passed_may_be_changed_before_the_call_is_awaited() -> None:
    import numpy as np

    class Keeper(ForgeActor):
        def __init__(self) -> None:
            self.kept: list[Any] = []

        @endpoint
        async def keep(self, array: Any) -> None:
            self.kept.append(array)

        @endpoint
        async def sums(self) -> list[tuple[int, int, int]]:
            return [(int(a[0]), int(a[-1]), int(a.astype(np.int64).sum())) for a in self.kept]

    keeper = await Keeper.options(preload=[], procs=2).as_actor()
    expected = []
    for size in (9_000, 20_000, 40_000, 3_000_000):  # in the pickle, as a frame of its own, and in shared memory
        array: Any = np.zeros(size, np.int64)
        calls = []
        for k in range(10):
            array[:] = k
            calls.append(asyncio.ensure_future(keeper.keep.call(array)))
            await asyncio.sleep(0)
            array[:] = -1
            keeper.keep.broadcast(array)
            array[:] = -2
            expected += [(k, k, k * size), (-1, -1, -size)]
        await asyncio.gather(*calls)
    for sums in (await keeper.sums.call()).values():
        assert sums == expected, sums


class Echo(ForgeActor):
    @endpoint
    async def echo(self, array: Any) -> Any:
        assert (array == array[0]).all(), "mixed"
        await asyncio.sleep(random.random() / 100)
        return array

    @endpoint
    async def held(self) -> int:
        """How many pieces of shared memory this process holds."""
        found = 0
        for entry in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found += os.readlink("/proc/self/fd/" + entry).startswith("/memfd:forgectl")
        return found


async def storm(handle: Echo, seconds: float, seed: int) -> None:
    """Calls with arrays, some of which are given up."""
    import numpy as np

    rng = random.Random(seed)
    end = time.monotonic() + seconds

    async def one(k: int) -> None:
        array = np.full(rng.randrange(40_000, 400_000), k)
        call = asyncio.ensure_future(handle.echo.call(array))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() / 50)
            call.cancel()
        try:
            answers = await call
        except asyncio.CancelledError:
            return
        for answer in answers.values():
            assert len(answer) == len(array) and (answer == k).all(), "wrong bytes"

    k = 0
    while time.monotonic() < end:
        await asyncio.gather(*(one(k + i) for i in range(8)))
        k += 8


def storm_until_killed(handle: Echo, seed: int) -> None:
    asyncio.run(storm(handle, 60, seed))


def shared_memory_under_calls_that_are_cancelled_and_processes_that_are_killed() -> None:
    async def launch() -> Echo:
        return await Echo.options(preload=[], procs=2).as_actor()

    async def held(handle: Echo) -> list[int]:
        return list((await handle.held.call()).values())

    echo = asyncio.run(launch())
    spawn = multiprocessing.get_context("spawn")
    for seed in range(4):
        others = [spawn.Process(target=storm_until_killed, args=(echo, 10 * seed + n)) for n in range(2)]
        for process in others:
            process.start()
        asyncio.run(storm(echo, 1.5, seed))
        for process in others:
            process.kill()
            process.join()
    asyncio.run(storm(echo, 0.2, 99))  # what was under way of those that were killed ends
    left = asyncio.run(held(echo))
    assert max(left) <= 64, left  # what a process keeps for later messages
    assert not {name for name in os.listdir("/dev/shm") if "forge" in name} - {f"forgectl-{os.getuid()}"}


async def garbage_from_a_process_of_the_run_is_reported_and_dropped() -> None:
    c = await Fast.options(procs=1).as_actor()
    folder = ranks_of(c)._here.folder
    peer = zmq.Context().socket(zmq.DEALER)
    peer.linger = 0
    peer.connect(f"ipc://{folder}/{socket_name('counter', 0, 0)}")
    chance = random.Random(7)
    for _ in range(300):
        peer.send_multipart([chance.randbytes(chance.choice((0, 1, 9, 50))) for _ in range(chance.randint(1, 5))])
    peer.send_multipart(pack(CALL, 1))
    peer.send_multipart(pack(CALL, 2, [b"not a pickle"]))
    peer.send_multipart(pack(CAST, 3, [b"not a pickle"]))
    peer.send_multipart(pack(CALL, 4, [pickle.dumps("not a request")]))
    peer.send_multipart(pack(CALL, 5, [pickle.dumps(("construct", 1, 2, 3, 4))]))
    for _ in range(5):
        await asyncio.to_thread(peer.recv_multipart)
    assert list((await c.add.call(1)).values()) == [1]


if __name__ == "__main__":
    play(globals())
