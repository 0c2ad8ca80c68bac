"""The message plane as its users meet it: who may call, in what order, how much at once, and what is left of it."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play, the_run
from tests.process.outputs import log_of

# ---------------------------------------------------------------- order, and how much at once


def test_calls_of_several_threads_have_one_order_on_every_rank(forge: Forge) -> None:
    """Or collectives of two callers would meet each other."""
    play(
        forge,
        """
        import threading

        class Order(ForgeActor):
            def __init__(self):
                self.log = []

            @endpoint
            async def note(self, who, k):
                self.log.append((who, k))

            @endpoint
            async def read(self):
                return self.log

        async def launch():
            return await Order.options(preload=[], procs=4).as_actor()

        async def many(order, who):
            await asyncio.gather(*(order.note.call(who, k) for k in range(200)))

        order = asyncio.run(launch())
        threads = [threading.Thread(target=lambda w=w: asyncio.run(many(order, w))) for w in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def read():
            return list((await order.read.call()).values())

        first, *others = asyncio.run(read())
        assert len(first) == 800
        for other in others:
            assert other == first
        for who in range(4):
            assert [k for w, k in first if w == who] == list(range(200))
        """,
        main=False,
    )


def test_a_flood_of_calls_waits_at_the_caller_and_loses_none(forge: Forge) -> None:
    """A rank that is slow has at most a window of them; all are answered in order."""
    play(
        forge,
        """
        class Slow(ForgeActor):
            def __init__(self):
                self.log = []
                self.may_go = asyncio.Event()

            @endpoint
            async def hold(self):
                await asyncio.sleep(0)
                while not (HERE / "go").exists():
                    await asyncio.sleep(0.01)

            @endpoint
            async def note(self, k):
                self.log.append(k)
                return k

            @endpoint
            async def pending(self):
                return len(asyncio.all_tasks())

            @endpoint
            async def read(self):
                return self.log == sorted(self.log), len(self.log)

        from forgectl.messages.calling import WINDOW, exchange

        slow = await Slow.options(preload=[]).as_actor()
        holding = asyncio.ensure_future(slow.hold.call_one())
        await asyncio.sleep(0)
        calls = [asyncio.ensure_future(slow.note.call_one(k)) for k in range(20_000)]
        await asyncio.sleep(0)
        [line] = exchange(slow._mesh.now()._here)._lines.values()
        assert line.under_way == WINDOW and len(line.waiting) == 20_001 - WINDOW, (line.under_way, len(line.waiting))
        calls[15_000].cancel()
        (HERE / "go").touch()
        await holding
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [f for f in found if not isinstance(f, BaseException)] == [k for k in range(20_000) if k != 15_000]
        assert await slow.read.call_one() == (True, 19_999)
        assert line.under_way == 0 and not line.waiting
        """,
    )


def test_a_flood_of_broadcasts_blocks_until_there_is_room(forge: Forge) -> None:
    """And ends when the rank does."""
    play(
        forge,
        """
        import threading
        from forgectl.messages.calling import WINDOW

        c = await Fast.options(procs=2).as_actor()
        for _ in range(20_000):
            c.add.broadcast(1)
        assert list((await c.state.call()).values()) == [20_000] * 2

        waiting = asyncio.ensure_future(c.hang.call(str(HERE / "hangs")))
        await exists("hangs-0", "hangs-1")
        pids = [r.pid for r in forgectl.actor.driver.run_client.living_run_client()._latest["counter"].ranks]
        sent = []

        def flood():
            for _ in range(3 * WINDOW):
                c.add.broadcast(1)
                sent.append(1)

        thread = threading.Thread(target=flood)
        thread.start()
        while len(sent) < 2 * WINDOW - 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert thread.is_alive() and len(sent) < 2 * WINDOW + 2, len(sent)
        os.kill(pids[0], signal.SIGKILL)
        await raised(ActorDied, waiting)
        await asyncio.to_thread(thread.join)
        assert len(sent) == 3 * WINDOW
        """,
    )


def test_a_broadcast_from_plain_code(forge: Forge) -> None:
    play(
        forge,
        """
        async def launch():
            return await Fast.options(procs=2).as_actor()

        c = asyncio.run(launch())
        for _ in range(5000):
            c.add.broadcast(1)

        async def read():
            return list((await c.state.call()).values())

        assert asyncio.run(read()) == [5000, 5000]
        """,
        main=False,
    )


def test_nothing_is_kept_of_calls_that_are_over(forge: Forge) -> None:
    play(
        forge,
        """
        from forgectl.messages.calling import exchange

        c = await Fast.options(procs=2).as_actor()
        late = c.options(timeout=0.05)
        for _ in range(50):
            await c.add.call(1)
        for _ in range(20):
            await raised(ValueError, c.fail.call())
        await raised(asyncio.TimeoutError, late.hang.call())
        ranks = c._mesh.now()
        way = exchange(ranks._here)
        while len(way._under_way) > 2:  # an error of one rank does not wait for the other's
            await asyncio.sleep(0.01)
        assert not ranks._calls and len(way._under_way) == 2  # the two that hang
        await c.shutdown(0)
        assert not way._under_way and not way._lines and not way._connected, vars(way)
        """,
    )


# ---------------------------------------------------------------- who may call


def test_a_process_that_the_script_starts_may_call(forge: Forge) -> None:
    """A handle is data: processes of the run's machine use it, forked or spawned, and learn of deaths."""
    play(
        forge,
        """
        import concurrent.futures
        import multiprocessing

        async def ask(handle, k):
            try:
                return list((await handle.add.call(k)).values())
            except ActorDied as e:
                return f"{e.mesh} {e.rank}"

        def call(handle, k):
            return asyncio.run(ask(handle, k))

        async def launch():
            return await Fast.options(procs=2).as_actor()

        async def kill(c):
            await raised(ActorDied, c.die.call("_exit", 1))

        if __name__ == "__main__":
            c = asyncio.run(launch())
            for k, method in enumerate(("fork", "spawn")):
                pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(method))
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
        """,
        main=False,
    )


def test_a_plain_endpoint_calls_others_in_loops_of_its_own(forge: Forge) -> None:
    play(
        forge,
        """
        class Plain(Counter):
            @endpoint
            def ask_from_thread(self, other, times):
                async def ask():
                    return list((await other.add.call(1)).values())

                return [asyncio.run(ask()) for _ in range(times)]

        a = await Fast.options(procs=2, mesh_name="a").as_actor()
        b = await Plain.options(preload=[]).as_actor()
        assert await b.ask_from_thread.call_one(a, 5) == [[k, k] for k in range(1, 6)]
        """,
    )


def test_a_handle_of_another_run_says_so(forge: Forge) -> None:
    forge.env["HANDLE"] = str(forge.folder / "handle")
    play(
        forge,
        """
        import pickle
        from forgectl.actor.foreign_mesh import Origin

        c = await Fast.as_actor()
        parts = c.__reduce__()[1][0].__reduce__()[1]
        elsewhere = Origin("other-0000", "another machine", "/nowhere", "/nowhere/agent")
        from forgectl.actor.foreign_mesh import ForeignMesh
        from forgectl.actor.handle import ActorHandle

        other = ActorHandle(ForeignMesh(*parts[:3], elsewhere, *parts[4:]))
        error = await raised(ForgeError, other.add.call(1))
        assert "a handle of run other-0000 cannot be used here" in str(error)
        gone = Origin("other-0000", parts[3].machine, "/nowhere", "/nowhere/agent")
        other = ActorHandle(ForeignMesh(*parts[:3], gone, *parts[4:]))
        error = await raised(ActorDied, other.add.call(1))
        assert "its run has ended" in str(error)
        """,
    )


# ---------------------------------------------------------------- values


def test_arrays_and_tensors_arrive_writable_and_their_senders_may_go_on(forge: Forge) -> None:
    pytest.importorskip("torch")
    play(
        forge,
        """
        import numpy as np
        import torch

        class Holder(ForgeActor):
            def __init__(self, weights):
                self.weights = weights

            @endpoint
            async def step(self):
                before = self.weights
                self.weights += 1  # in place, while the answer is on its way
                return before

            @endpoint
            async def give(self):
                return self.weights

            @endpoint
            async def scale(self, array, tensor):
                array *= 2
                tensor *= 2
                return array, tensor

        holder = await Holder.options(preload=[]).as_actor(torch.zeros(4_000_000))
        answers = await asyncio.gather(*(x for k in range(6) for x in (holder.give.call_one(), holder.step.call_one())))
        for k, (given, stepped) in enumerate(zip(answers[::2], answers[1::2])):
            assert torch.equal(given, torch.full_like(given, k)), (k, given.min(), given.max())
            assert torch.equal(stepped, torch.full_like(stepped, k + 1))
        array, tensor = await holder.scale.call_one(np.ones(100_000), torch.ones(100_000, dtype=torch.bfloat16))
        array += 1
        tensor += 1
        assert (array == 3).all() and (tensor == 3).all() and tensor.dtype == torch.bfloat16
        """,
    )


def test_what_was_passed_may_be_changed_before_the_call_is_awaited(forge: Forge) -> None:
    """Whether it goes through shared memory or a socket; and whoever got it may keep it."""
    play(
        forge,
        """
        import numpy as np

        class Keeper(ForgeActor):
            def __init__(self):
                self.kept = []

            @endpoint
            async def keep(self, array):
                self.kept.append(array)

            @endpoint
            async def sums(self):
                return [(int(a[0]), int(a[-1]), int(a.astype(np.int64).sum())) for a in self.kept]

        keeper = await Keeper.options(preload=[], procs=2).as_actor()
        expected = []
        for size in (9_000, 20_000, 40_000, 3_000_000):  # in the pickle, as a frame of its own, and in shared memory
            array = np.zeros(size, np.int64)
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
        """,
    )


def test_shared_memory_under_calls_that_are_cancelled_and_processes_that_are_killed(forge: Forge) -> None:
    """No byte is wrong, and whatever was killed leaves no memory behind."""
    play(
        forge,
        """
        import multiprocessing, os, random, signal, time
        import numpy as np

        class Echo(ForgeActor):
            @endpoint
            async def echo(self, array):
                assert (array == array[0]).all(), "mixed"
                await asyncio.sleep(random.random() / 100)
                return array

            @endpoint
            async def held(self):
                found = 0
                for entry in os.listdir("/proc/self/fd"):
                    try:
                        found += os.readlink("/proc/self/fd/" + entry).startswith("/memfd:forgectl")
                    except OSError:
                        pass
                return found

        async def storm(handle, seconds, seed):
            rng = random.Random(seed)
            end = time.monotonic() + seconds

            async def one(k):
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

        def other(handle, seed):
            asyncio.run(storm(handle, 60, seed))

        async def launch():
            return await Echo.options(preload=[], procs=2).as_actor()

        async def held(handle):
            return max((await handle.held.call()).values())

        if __name__ == "__main__":
            echo = asyncio.run(launch())
            spawn = multiprocessing.get_context("spawn")
            for seed in range(4):
                others = [spawn.Process(target=other, args=(echo, 10 * seed + n)) for n in range(2)]
                for process in others:
                    process.start()
                asyncio.run(storm(echo, 1.5, seed))
                for process in others:
                    process.kill()
                    process.join()
            asyncio.run(storm(echo, 0.2, 99))  # what was under way of those that were killed ends
            left = asyncio.run(held(echo))
            assert left <= 64, left  # what a process keeps for later messages
            assert not [name for name in os.listdir("/dev/shm") if "forge" in name]
        """,
        main=False,
    )


def test_garbage_from_a_process_of_the_run_is_reported_and_dropped(forge: Forge) -> None:
    """The same user's: others cannot connect (test_privacy.py)."""
    play(
        forge,
        """
        import random
        import zmq
        from forgectl.messages.frames import CALL, CAST, pack, socket_name

        c = await Fast.options(procs=1).as_actor()
        folder = c._mesh.now()._here.folder
        peer = zmq.Context().socket(zmq.DEALER)
        peer.linger = 0
        peer.connect(f"ipc://{folder}/{socket_name('counter', 0, 0)}")
        chance = random.Random(7)
        for _ in range(300):
            peer.send_multipart([chance.randbytes(chance.choice((0, 1, 9, 50))) for _ in range(chance.randint(1, 5))])
        peer.send_multipart(pack(CALL, 1))
        peer.send_multipart(pack(CALL, 2, [b"not a pickle"]))
        peer.send_multipart(pack(CAST, 3, [b"not a pickle"]))
        peer.send_multipart(pack(CALL, 4, [__import__("pickle").dumps("not a request")]))
        peer.send_multipart(pack(CALL, 5, [__import__("pickle").dumps(("construct", 1, 2, 3, 4))]))
        for _ in range(5):
            answer = await asyncio.to_thread(peer.recv_multipart)
        assert list((await c.add.call(1)).values()) == [1]
        """,
    )
    assert "dropped a message that is not a request" in log_of(forge, the_run(forge), "counter", 0)
