"""The two ends of a stream without sockets between them: every value once and in order, bounds, and clean ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.actor import callers
from forgectl.actor.callers import Caller, Callers, this_caller
from forgectl.actor.deaths import is_over
from forgectl.actor.endpoint import endpoint, service_endpoint
from forgectl.actor.inflow import AHEAD, Inflow, Over
from forgectl.actor.outflow import ENDED, FAILED, GOING, MOST, MOST_BYTES, Batch, Outflow
from forgectl.actor.performer import Performer, call_ids
from forgectl.actor.rank_streams import Streams
from forgectl.actor.stream import Stream
from forgectl.messages import pickling
from forgectl.protocol.supervision import MeshNews
from forgectl.system.futures import Future
from forgectl.system.loops import in_loop, plain_loop
from tests.conftest import eventually


def looped(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


PAUSES = st.lists(st.integers(0, 3), max_size=12)


class Source:
    """A generator with a pause before each value, and its outflow."""

    def __init__(self, number: int, pauses: list[int], fails: bool, most: int) -> None:
        self.number = number
        self.pauses = pauses
        self.fails = fails
        self.out = Outflow(most=most, longest=60)
        self.taken = self.made = self.furthest = self.begun = self.ended = 0

    async def values(self) -> AsyncIterator[tuple[int, int]]:
        self.begun += 1
        try:
            for i, pause in enumerate(self.pauses):
                await steps(pause)
                self.made += 1
                self.furthest = max(self.furthest, self.made - self.taken)
                yield self.number, i
            if self.fails:
                raise ValueError(self.number)
        finally:
            self.ended += 1
            await asyncio.sleep(0)

    async def batch(self) -> Batch:
        found: Batch = pickling.loads(pickling.copied(pickling.dumps(await self.out.take())))
        return found

    def run(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.out.run(self.out.fill(self.values())))  # type: ignore[arg-type]


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def joined(sources: list[Source]) -> Stream[Any]:
    loop = asyncio.get_running_loop()

    async def all_ended(runs: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*runs)

    def leave() -> None:
        for source in sources:
            in_loop(loop, source.out.close)

    opened = Future.of(all_ended([source.run() for source in sources]), loop, "opened")

    def ask(source: Source) -> Future[Batch]:
        return Future.of(source.batch(), loop, "ask")

    return Stream(Inflow("test", [functools.partial(ask, source) for source in sources], opened, leave))


async def nothing_is_left() -> None:
    """A stream that is dropped is left from another thread."""
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks")


@settings(max_examples=100, deadline=None)
@given(st.lists(PAUSES, min_size=1, max_size=3), st.lists(st.integers(0, 20), max_size=40), st.integers(1, 5))
def test_every_value_comes_once_and_in_order_and_none_too_early(
    plans: list[list[int]], waits: list[int], most: int
) -> None:
    async def main() -> None:
        sources = [Source(n, plan, False, most) for n, plan in enumerate(plans)]
        found: list[tuple[int, int]] = []
        async for number, i in joined(sources):
            found.append((number, i))
            sources[number].taken += 1
            await steps(waits[len(found) % len(waits)] if waits else 0)
        for source in sources:
            assert [i for number, i in found if number == source.number] == list(range(len(source.pauses)))
            assert source.furthest <= (2 + AHEAD) * most
            assert source.begun == source.ended == 1
        await nothing_is_left()

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(st.lists(PAUSES, min_size=1, max_size=3), st.integers(1, 5))
def test_an_exception_comes_after_all_values_of_its_source(plans: list[list[int]], most: int) -> None:
    async def main() -> None:
        sources = [Source(n, plan, n == 0, most) for n, plan in enumerate(plans)]
        stream, found = joined(sources), []

        async def take_all() -> None:
            async for value in stream:
                found.append(value)  # noqa: PERF401  # also what comes before the exception

        with pytest.raises(ValueError, match="0"):
            await take_all()
        assert [i for number, i in found if number == 0] == list(range(len(plans[0])))
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()
        await nothing_is_left()
        assert all(source.ended == source.begun == 1 for source in sources)

    asyncio.run(main())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(0, 60),
    st.sampled_from(["close", "drop", "cancel"]),
)
def test_leaving_at_any_moment_closes_each_generator_once(
    plans: list[list[int]], most: int, moment: int, how: str
) -> None:
    async def main() -> None:
        sources = [Source(n, plan, False, most) for n, plan in enumerate(plans)]
        stream = joined(sources)
        found: list[tuple[int, int]] = []

        async def consume(stream: Stream[Any]) -> None:
            with contextlib.suppress(StopAsyncIteration):
                while how == "cancel" or len(found) < moment:
                    found.append(await stream.__anext__())

        task = asyncio.ensure_future(consume(stream))
        if how == "cancel":
            await steps(moment)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            await task
        del task
        if how == "close":
            await stream.aclose()
            assert all(source.begun == source.ended for source in sources)
        del stream
        gc.collect(0)
        await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(steps(1), plain_loop())
        )  # a dropped one is left there
        await nothing_is_left()
        for source in sources:
            assert source.begun == source.ended <= 1
            mine = [i for number, i in found if number == source.number]
            assert mine == list(range(len(mine)))

    asyncio.run(main())


@looped
async def test_leaving_is_told_while_the_rank_has_values_although_its_generator_has_ended() -> None:
    told: list[int] = []
    source = Source(0, [0] * 9, False, 2)
    run, loop = source.run(), asyncio.get_running_loop()
    inflow = Inflow("test", [lambda: Future.of(source.batch(), loop, "ask")], done(), lambda: told.append(1))
    assert inflow.pop() is None
    await inflow.wait()
    assert inflow.pop() == ((0, 0),)
    assert inflow.leave() is False and told == [1]  # there is no generator to wait for
    assert inflow.leave() is False and told == [1]
    with pytest.raises(Over):
        inflow.pop()
    source.out.close()
    await run
    ended = Inflow("test", [lambda: answered([], ENDED)], done(), lambda: told.append(2))
    with pytest.raises(Over):
        ended.pop()
    ended.leave()
    assert told == [1]  # nothing is left in the rank


def done() -> Future[None]:
    return answered(None)


def answered(*value: Any) -> Future[Any]:
    future = Future[Any]("test")
    future.succeed(value)
    return future


@looped
async def test_a_stream_of_which_only_the_first_source_counts() -> None:
    batches = {n: [answered([pickling.nested(f"{n} {i}")], GOING) for i in range(3)] for n in range(2)}

    def ask(n: int) -> Future[Batch]:
        return batches[n].pop(0) if batches[n] else answered([], ENDED)

    asks = [functools.partial(ask, n) for n in range(2)]
    stream = Stream[Any](Inflow("test", asks, done(), first_only=True))
    assert [value async for value in stream] == ["0 0", "0 1", "0 2"]
    with pytest.raises(TypeError, match="under way"):
        pickling.dumps(stream)


# ---------------------------------------------------------------- the rank's side


@looped
async def test_what_is_ready_travels_together_and_one_value_at_once() -> None:
    gate = asyncio.Event()

    async def values() -> AsyncIterator[int]:
        yield 1
        await gate.wait()
        for i in range(5):
            yield i

    out = Outflow(most=3, longest=60)
    run = asyncio.ensure_future(out.run(out.fill(values())))  # type: ignore[arg-type]
    assert loaded(await out.take()) == ([1], GOING)
    first, second = asyncio.ensure_future(out.take()), asyncio.ensure_future(out.take())
    await steps(5)
    gate.set()
    assert loaded(await first) == ([0], GOING)
    assert loaded(await second) == ([1, 2, 3], GOING)
    await run
    assert loaded(await out.take()) == ([4], ENDED)
    assert loaded(await out.take()) == ([], ENDED)


def loaded(batch: Batch) -> Batch:
    return [pickling.loads(frames) for frames in batch[0]], batch[1]


@pytest.mark.parametrize(("size", "most"), [(10, MOST), (MOST_BYTES // 4, 4), (2 * MOST_BYTES, 1)])
@looped
async def test_the_generator_waits_when_there_is_no_room(size: int, most: int) -> None:
    made = 0

    async def values() -> AsyncIterator[str]:
        nonlocal made
        while True:
            made += 1
            yield "x" * size

    out = Outflow(longest=60)
    run = asyncio.ensure_future(out.run(out.fill(values())))  # type: ignore[arg-type]
    for taken in range(3):
        await steps(200)
        assert made == (taken + 1) * most
        assert len((await out.take())[0]) == most
    out.close()
    await run


@looped
async def test_a_slow_generator_is_not_far_ahead() -> None:
    made = 0

    async def values() -> AsyncIterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    out = Outflow(longest=0)  # as if every value had taken longer
    run = asyncio.ensure_future(out.run(out.fill(values())))  # type: ignore[arg-type]
    for taken in range(1, 4):
        await steps(200)
        assert made == taken and loaded(await out.take()) == ([taken], GOING)
    out.close()
    await run


@looped
async def test_a_long_value_is_not_copied_and_waits_alone() -> None:
    numpy = pytest.importorskip("numpy")
    data, made = numpy.zeros(100_000, dtype="uint8"), 0

    async def values() -> AsyncIterator[Any]:
        nonlocal made
        while True:
            made += 1
            data[:] = made
            yield data

    out = Outflow()
    run = asyncio.ensure_future(out.run(out.fill(values())))  # type: ignore[arg-type]
    for n in range(1, 4):
        await steps(20)
        assert made == n
        [found], _ = loaded(await out.take())
        assert found[0] == n and numpy.shares_memory(found, data)
    out.close()
    await run


@looped
async def test_a_generator_that_never_waits_lets_others_run() -> None:
    turns = 0

    async def values() -> AsyncIterator[int]:
        for i in range(50):
            for _ in range(20_000):
                pass
            yield i

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    out, beside = Outflow(longest=60), asyncio.ensure_future(other())
    await out.run(out.fill(values()))  # type: ignore[arg-type]
    beside.cancel()
    assert turns > 1


@looped
async def test_a_value_that_cannot_be_sent_ends_the_generator() -> None:
    ended = []

    async def values() -> AsyncIterator[Any]:
        try:
            yield 1
            yield sys._getframe()
        finally:
            ended.append(1)

    out = Outflow()
    with pytest.raises(TypeError):
        await out.run(out.fill(values()))  # type: ignore[arg-type]
    assert ended == [1] and loaded(await out.take()) == ([1], FAILED)


@looped
async def test_a_muted_one_sends_nothing_but_that_there_is_a_value() -> None:
    async def values() -> AsyncIterator[Any]:
        yield sys._getframe()

    out = Outflow(muted=True)
    await out.run(out.fill(values()))  # type: ignore[arg-type]
    assert loaded(await out.take()) == ([None], ENDED)


class Subject:
    @endpoint
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @endpoint(concurrent=True)
    async def beside(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


@looped
async def test_the_streams_of_a_rank() -> None:
    streams, performer = Streams(), Performer(Subject())

    def begin(name: str, n: int) -> tuple[int, asyncio.Task[None]]:
        number, out = next(call_ids), Outflow(most=2, longest=60)
        work = performer.perform(name, (n,), {}, (number,), out)
        return number, asyncio.ensure_future(streams.run(number, this_caller(), out, work))

    first, running = begin("count", 5)
    second, waiting = begin("count", 5)
    third, _ = begin("beside", 1)
    await steps(10)
    assert loaded(await streams.next(third)) == ([0], ENDED)
    assert loaded(await streams.next(first)) == ([0, 1], GOING)
    streams.close(second)  # before its turn
    await waiting
    streams.close(first)
    streams.close(first)
    await running
    for number in (first, second, third, 0):
        assert await streams.next(number) == ([], FAILED)
    assert (streams._under_way, streams._callers._waiting, streams._callers._watched) == ({}, {}, {})
    with pytest.raises(TypeError, match="stream"):
        await performer.perform("count", (1,), {}, (next(call_ids),))


def test_batches_cannot_stream() -> None:
    with pytest.raises(TypeError, match="streams, and so cannot have batches"):

        @service_endpoint(batch_size=2)  # type: ignore[arg-type]
        async def both(self: Any, n: list[int]) -> AsyncIterator[int]:
            yield 1


# ---------------------------------------------------------------- callers that end


def caller(pid: int, **others: Any) -> Caller:
    mine = this_caller()
    namespace = mine.process.partition(b".")[0]
    return mine._replace(process=namespace + f".{pid}.x".encode(), **others)


@looped
async def test_a_caller_here_is_gone_when_its_process_ends() -> None:
    found, gone = Callers(), asyncio.Event()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        one = caller(process.pid)
        forget = found.watch(one, lambda: None)
        found.watch(one, gone.set)
        forget()
        await steps(5)
        assert not gone.is_set()
        process.kill()
        await asyncio.wait_for(gone.wait(), 30)
    assert (found._waiting, found._watched) == ({}, {})
    again = asyncio.Event()
    found.watch(one, again.set)  # it had ended before its request was read
    await asyncio.wait_for(again.wait(), 30)


@looped
async def test_descriptors_are_closed_once_nobody_asks() -> None:
    found, before = Callers(), len(os.listdir("/proc/self/fd"))
    first, second = (found.watch(caller(os.getppid()), print) for _ in range(2))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    first()
    second()
    second()
    assert len(os.listdir("/proc/self/fd")) == before


@looped
async def test_a_caller_elsewhere_is_gone_when_its_mesh_is_reported_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    watchers: dict[str, Callable[[MeshNews], None]] = {}

    class Follower:
        def watch(self, mesh: str, watcher: Callable[[MeshNews], None]) -> None:
            assert mesh not in watchers
            watchers[mesh] = watcher

    monkeypatch.setattr(callers, "follower", lambda run, agent: Follower())
    monkeypatch.setenv("FORGE_RUN_ID", "a-run")
    monkeypatch.setenv("FORGE_AGENT", "/agent")
    found, gone = Callers(), []
    far = caller(1, machine="another", run="a-run", mesh="trainer", generation=1)
    found.watch(far, lambda: gone.append(1))
    found.watch(far._replace(generation=2), lambda: gone.append(2))
    found.watch(far._replace(mesh="", process=b"no rank"), lambda: gone.append(3))
    watchers["trainer"](MeshNews("trainer", 1, "ready"))
    await steps(5)
    assert gone == []
    watchers["trainer"](MeshNews("trainer", 2, "starting"))
    await steps(5)
    assert gone == [1]
    found.watch(far, lambda: gone.append(4))  # its request was slower than the news
    await steps(5)
    assert gone == [1, 4]
    watchers["trainer"](MeshNews("trainer", 2, "failed"))
    await steps(5)
    assert gone == [1, 4, 2]


@pytest.mark.parametrize(
    ("generation", "state", "over"),
    [(0, "ready", False), (1, "starting", False), (1, "ready", False), (1, "stopping", True), (2, "starting", True)],
)
def test_what_news_mean_for_a_generation(generation: int, state: Any, over: bool) -> None:
    assert is_over(1, MeshNews("m", generation, state)) is over
