"""What test_streams.py has scripts do with endpoints that yield."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from forgectl import ActorDied, ForgeActor, endpoint
from forgectl.actor.inflow import AHEAD
from forgectl.actor.outflow import MOST
from forgectl.errors import ServiceUnavailable
from forgectl.system.futures import Future
from playing import HERE, exists, pids_of, play, raised, refused
from serving import WHERE, W, go, lines, seen, until


class Teller(ForgeActor):
    """Yields, and tells how its generators ended."""

    def __init__(self) -> None:
        self.made = 0
        self.ended: list[str] = []

    @endpoint
    async def count(self, n: int) -> AsyncIterator[tuple[int, int]]:
        for i in range(n):
            yield self.rank, i

    @endpoint(concurrent=True)
    async def forever(self, mark: str) -> AsyncIterator[int]:
        """Never waits by itself."""
        self.made = 0
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            await asyncio.sleep(0)
            self.ended.append(mark)

    @endpoint(concurrent=True)
    async def stuck(self, values: int, mark: str = "") -> AsyncIterator[int]:
        """Waits for ever after some values."""
        try:
            for i in range(values):
                yield i
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.append(f"{mark} cancelled")
            raise
        finally:
            self.ended.append(mark)

    @endpoint(concurrent=True)
    async def stubborn(self) -> AsyncIterator[int]:
        """Does not end when it is cancelled, but must when it yields the next time."""
        try:
            yield 1
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield 2
            self.ended.append("went on")
        finally:
            self.ended.append("closed")

    @endpoint
    async def fail_after(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise ValueError(f"after {n}")

    @endpoint(concurrent=True)
    async def fail_at_its_end(self) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise LookupError("at its end")

    @endpoint
    async def tensors(self, count: int, size: int) -> AsyncIterator[Any]:
        """One tensor, which changes after each `yield`."""
        import torch

        data = torch.zeros(size, dtype=torch.uint8)
        for i in range(count):
            data += 1
            yield i, data

    @endpoint
    async def until_there(self, name: str) -> AsyncIterator[str]:
        yield "waits"
        await exists(name)
        yield "there"

    @endpoint
    async def around(self) -> AsyncIterator[int]:
        """Yields what a call of its own rank gives, while it has the turn itself."""
        me = self.mesh.slice(procs=self.rank)
        yield await me.plain.call_one(1)
        async for _, value in me.count.stream(3):
            yield value

    @endpoint
    async def plain(self, n: int) -> int:
        return n

    @endpoint(concurrent=True)
    async def how_many(self) -> int:
        return self.made

    @endpoint(concurrent=True)
    async def how_ended(self) -> list[str]:
        return self.ended

    @endpoint(concurrent=True)
    async def take_of(self, other: Any, file: str) -> None:
        """Take values of another mesh for ever."""
        async for value in other.forever.stream("of another mesh"):
            if value == 10:
                (HERE / file).touch()


Idle = Teller.options(preload=[])


async def has_ended(handle: Any, *marks: str) -> None:
    """Wait until the generators of a rank have ended so."""
    while await handle.how_ended.call_one() != list(marks):
        await asyncio.sleep(0.005)


# ---------------------------------------------------------------- values


async def every_value_comes_once_and_in_order() -> None:
    handle = await Idle.options(procs=3).as_actor()
    stream = handle.count.stream(3000)
    found = [value async for value in stream]
    for rank in range(3):
        assert [i for r, i in found if r == rank] == list(range(3000))
    assert [value async for value in stream] == []
    assert [i async for _, i in handle.slice(procs=1).count.stream(5)] == [0, 1, 2, 3, 4]
    assert [value async for value in handle.count.stream(0)] == []
    assert sorted([value async for value in handle.plain.stream(7)]) == [7, 7, 7]


async def it_begins_when_it_is_called() -> None:
    handle = await Idle.as_actor()
    stream = handle.forever.stream("dropped")
    while not await handle.how_many.call_one():
        await asyncio.sleep(0.005)
    del stream
    await has_ended(handle, "dropped")


async def a_slow_caller_holds_the_generator_up() -> None:
    handle = await Idle.as_actor()
    taken, bound = 0, (2 + AHEAD) * MOST  # in the rank, in the answers to come, and in the one that is at hand
    async with contextlib.aclosing(handle.forever.stream("")) as stream:
        for pause in (1, 2, 600, 1, 1500):
            for _ in range(pause):
                assert await stream.__anext__() == taken + 1
                taken += 1
            most = 0
            for _ in range(200):  # each lets it run
                most = max(most, await handle.how_many.call_one())
            assert taken < most <= taken + bound, (taken, most)


async def long_values_come_as_they_were_yielded() -> None:
    import torch

    handle = await Teller.as_actor()
    for size in (1000, 100_000, 4_000_000):
        found = [pair async for pair in handle.tensors.stream(8, size)]
        for n, (i, data) in enumerate(found):
            assert i == n and torch.equal(data, torch.full((size,), n + 1, dtype=torch.uint8))
            data.add_(1)  # it is the caller's own


def plain_code_uses_for() -> None:
    handle = Idle.as_actor().get()
    assert [i for _, i in handle.count.stream(1000)] == list(range(1000))
    assert list(handle.plain.stream(1)) == [1]
    for value in handle.forever.stream("left"):
        if value == 500:
            break
    stream = handle.stuck.stream(1, "closed")
    assert next(stream) == 0
    stream.close()
    assert list(stream) == []
    assert handle.how_ended.call_one().get() == ["left", "closed cancelled", "closed"]
    late = handle.options(timeout=0.05).stuck.stream(1, "late")
    assert next(late) == 0
    refused(TimeoutError, lambda: next(late))
    error = refused(ValueError, lambda: list(handle.fail_after.stream(2)))
    assert str(error) == "after 2"
    begun = handle.count.stream(300)

    async def elsewhere() -> list[int]:
        assert "use `async for`" in str(refused(RuntimeError, lambda: iter(begun)))
        return [i async for _, i in begun]

    assert asyncio.run(elsewhere()) == list(range(300))

    async def only_begins() -> Any:
        stream = handle.count.stream(300)
        return await stream.__anext__(), stream

    first, rest = asyncio.run(only_begins())
    assert [first, *rest] == [(0, i) for i in range(300)]  # its loop is closed
    service = W.as_service(WHERE).get()
    go("plain")
    assert list(service.tell.stream("plain")) == ["svc.0 0", "last"]


async def a_generator_may_call_its_own_rank() -> None:
    handle = await Idle.as_actor()
    assert [value async for value in handle.around.stream()] == [1, 0, 1, 2]


async def it_holds_its_turn_until_it_ends() -> None:
    handle = await Idle.as_actor()
    stream = handle.until_there.stream("now")
    behind = handle.plain.call_one(1)
    assert await stream.__anext__() == "waits"
    assert await handle.how_many.call_one() == 0 and not behind.done()
    (HERE / "now").touch()
    assert [value async for value in stream] == ["there"]
    assert await behind == 1
    unread = handle.count.stream(10)  # it ends although nobody takes its values
    assert await handle.plain.call_one(2) == 2
    assert len([value async for value in unread]) == 10


async def other_verbs_name_it() -> None:
    handle: Any = await Idle.as_actor()
    service: Any = await W.as_service(WHERE)
    calls = (handle.count.call, handle.count.call_one, handle.count.choose)
    for call in (*calls, service.tell.route, service.tell.fanout):
        future: Future[Any] = call("1")
        assert ".stream(…)`" in str(await raised(TypeError, future))
    refused(TypeError, functools.partial(handle.count.broadcast, 1))
    refused(NotImplementedError, functools.partial(service.pid.stream))


# ---------------------------------------------------------------- ends


async def leaving_early_ends_the_generator() -> None:
    handle = await Idle.as_actor()
    async for value in handle.forever.stream("loop"):
        if value == 300:
            break
    await has_ended(handle, "loop")
    async with contextlib.aclosing(handle.forever.stream("with")) as stream:
        assert await stream.__anext__() == 1
    assert await handle.how_ended.call_one() == ["loop", "with"]  # `aclose` has waited for it
    assert [value async for value in stream] == []
    async with contextlib.aclosing(handle.stuck.stream(1, "waits")) as stream:
        assert await stream.__anext__() == 0
    assert (await handle.how_ended.call_one())[2:] == ["waits cancelled", "waits"]
    async with contextlib.aclosing(handle.stubborn.stream()) as stream:
        assert await stream.__anext__() == 1
    assert (await handle.how_ended.call_one())[4:] == ["closed"]
    failing = handle.fail_at_its_end.stream()
    assert await failing.__anext__() == 1
    assert str(await raised(LookupError, failing.aclose())) == "at its end"
    assert await handle.plain.call_one(1) == 1


async def leaving_before_its_turn() -> None:
    handle = await Idle.as_actor()
    first = handle.until_there.stream("turn")
    assert await first.__anext__() == "waits"
    await handle.fail_after.stream(0).aclose()
    (HERE / "turn").touch()
    assert [value async for value in first] == ["there"]


async def cancelling_whoever_waits_ends_the_generator() -> None:
    handle = await Idle.as_actor()

    async def take() -> None:
        async for value in handle.stuck.stream(1, "task"):
            (HERE / f"took {value}").touch()

    task = asyncio.create_task(take())
    await exists("took 0")
    task.cancel()
    await raised(asyncio.CancelledError, task)
    await has_ended(handle, "task cancelled", "task")


async def two_tasks_cannot_wait_for_the_same_value() -> None:
    handle = await Idle.as_actor()
    stream = handle.until_there.stream("both")
    assert await stream.__anext__() == "waits"
    waits = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0)
    assert "another task" in str(await raised(RuntimeError, stream.__anext__()))
    (HERE / "both").touch()
    assert await waits == "there"


async def a_value_that_takes_too_long() -> None:
    handle = await Idle.as_actor()
    hasty = handle.options(timeout=0.2)
    stream = hasty.stuck.stream(3, "late")
    assert [await stream.__anext__() for _ in range(3)] == [0, 1, 2]
    error = await raised(TimeoutError, stream.__anext__())
    assert str(error) == "teller.stuck has not yielded within 0.2 s"
    await has_ended(handle, "late cancelled", "late")
    assert len([value async for value in hasty.count.stream(500)]) == 500


async def an_exception_comes_after_the_values() -> None:
    handle = await Idle.options(procs=2).as_actor()
    for n in (0, 1, 200):
        stream = handle.slice(procs=0).fail_after.stream(n)
        assert [await stream.__anext__() for _ in range(n)] == list(range(n))
        error = await raised(ValueError, stream.__anext__())
        remote = str(error.__cause__)
        assert str(error) == f"after {n}" and 'raise ValueError(f"after {n}")' in remote, remote
        assert "forgectl/" not in remote, remote  # the user's frames alone
        await stream.aclose()
    assert type(await raised(ValueError, _first(handle.fail_after.stream(0)))) is ValueError
    await raised(TypeError, _first(handle.count.stream(1, 2, 3)))  # type: ignore[call-arg]
    cannot_be_sent: Any = (x for x in "")
    await raised(TypeError, _first(handle.count.stream(cannot_be_sent)))
    assert len([value async for value in handle.count.stream(3)]) == 6


async def _first(stream: Any) -> Any:
    return await stream.__anext__()


async def a_killed_rank_ends_it_after_what_had_come() -> None:
    handle = await Idle.options(procs=2, restart=1).as_actor()
    pids = pids_of(handle.mesh_name)
    found = []
    stream = handle.stuck.stream(100)

    async def take() -> None:
        async for value in stream:
            found.append(value)
            if len(found) == 200:
                os.kill(pids[1], signal.SIGKILL)

    assert (await raised(ActorDied, take())).rank == 1
    assert sorted(found) == sorted([*range(100)] * 2)
    assert [value async for value in stream] == []
    assert len([value async for value in handle.count.stream(3)]) == 6  # of the next generation


async def what_had_come_is_not_lost_with_its_rank() -> None:
    handle = await Idle.as_actor()
    [pid] = pids_of(handle.mesh_name)
    stream = handle.stuck.stream(50)
    assert await stream.__anext__() == 0
    second = handle.stuck.stream(0)
    os.kill(pid, signal.SIGKILL)
    await raised(ActorDied, second.__anext__())
    came = 1
    with contextlib.suppress(ActorDied):
        while True:
            assert await stream.__anext__() == came
            came += 1
    assert 1 <= came <= 50


def _take_for_ever(handle: Any) -> None:
    for value in handle.forever.stream("of another process"):
        if value == 500:
            (HERE / "it takes").touch()


async def a_killed_caller_ends_the_generator() -> None:
    handle = await Idle.as_actor()
    process = multiprocessing.get_context("spawn").Process(target=_take_for_ever, args=(handle,))
    process.start()
    await exists("it takes")
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    await has_ended(handle, "of another process")
    await asyncio.to_thread(process.join)


async def a_killed_rank_that_calls_ends_the_generator() -> None:
    handle, other = await asyncio.gather(Idle.as_actor(), Idle.options(mesh_name="other").as_actor())
    taking = other.take_of.call_one(handle, "rank takes")
    await exists("rank takes")
    os.kill(pids_of("other")[0], signal.SIGKILL)
    await raised(ActorDied, taking)
    await has_ended(handle, "of another mesh")


# ---------------------------------------------------------------- services


async def a_service_streams_from_one_replica() -> None:
    s = await W.options(num_replicas=2, procs=2).as_service(WHERE)
    first, second = s.tell.stream("a"), s.tell.stream("b")
    assert [await first.__anext__(), await second.__anext__()] == ["svc.0 0", "svc.1 0"]
    assert seen(s, active=[1, 1])
    go("a")
    assert [value async for value in first] == ["last"]
    await until(lambda: seen(s, active=[0, 1]))
    assert sorted(lines("end-a")) == ["svc.0 0", "svc.0 1"]  # every rank runs it
    await second.aclose()
    await until(lambda: seen(s, active=[0, 0]) and seen(s, successes=[1, 1]))
    assert sorted(lines("end-b")) == ["svc.1 0", "svc.1 1"]
    async with s.session():
        names = [await s.tell.stream("s").__anext__() for _ in range(3)]
    assert len(set(names)) == 1
    await until(lambda: seen(s, active=[0, 0]))


async def a_stream_takes_a_place_of_its_replica() -> None:
    s = await W.options(max_concurrent_requests=1).as_service(WHERE)
    first, second, third = (s.tell.stream(key) for key in "abc")
    assert await first.__anext__() == "svc.0 0"
    await until(lambda: seen(s, queued=[2]))
    await second.aclose()
    await until(lambda: seen(s, queued=[1]))
    del first
    assert await third.__anext__() == "svc.0 0"
    assert lines("end-a") and not lines("end-b")


async def a_replica_that_dies_is_not_replaced_midway() -> None:
    s = await W.options(num_replicas=2, restart=0).as_service(WHERE)
    stream = s.tell.stream("x")
    assert await stream.__anext__() == "svc.0 0"
    pids = {w["mesh"]: w["pid"] for w in await s.who.fanout()}
    os.kill(pids["svc.0"], signal.SIGKILL)
    await raised(ActorDied, stream.__anext__())
    assert await s.tell.stream("y").__anext__() == "svc.1 0"
    os.kill(pids["svc.1"], signal.SIGKILL)
    await until(lambda: seen(s, healthy=[False, False]))
    await raised(ServiceUnavailable, s.tell.stream("z").__anext__())


async def a_service_that_ends_ends_its_streams() -> None:
    s = await W.as_service(WHERE)
    stream = s.tell.stream("x")
    assert await stream.__anext__() == "svc.0 0"
    await s.shutdown(0)
    await raised(ActorDied, stream.__anext__())


if __name__ == "__main__":
    play(globals())
