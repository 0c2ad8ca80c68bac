"""One rank's endpoints: one at a time, in order, async and plain alike; a call back to itself does not hang."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from forgectl.actor.endpoint import endpoint
from forgectl.actor.performer import Performer, call_ids, calling


class Subject:
    performer: Performer
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.log: list[int] = []
        self.inside = 0
        self.most = 0
        self.thread_may_go = threading.Event()
        self.entered = threading.Event()

    def _enter(self, k: int) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.log.append(k)

    @endpoint
    async def slow(self, k: int) -> int:
        self._enter(k)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.inside -= 1
        return k

    @endpoint
    def plain(self, k: int) -> int:
        self._enter(k)
        self.inside -= 1
        return k

    @endpoint
    def wait(self) -> str:
        self.entered.set()
        assert self.thread_may_go.wait(10)
        return threading.current_thread().name

    @endpoint
    async def back(self, depth: int, kind: str) -> int:
        """Calls itself through another mesh's chain, as its own handle would."""
        if depth == 0:
            return 0
        deeper: int = await self.performer.perform(kind, (depth - 1, kind), {}, (*calling.get(), next(call_ids)))
        return 1 + deeper

    @endpoint
    def back_plain(self, depth: int, kind: str) -> int:
        if depth == 0:
            return 0
        call = self.performer.perform(kind, (depth - 1, kind), {}, (*calling.get(), next(call_ids)))
        deeper: int = asyncio.run_coroutine_threadsafe(call, self.loop).result(10)
        return 1 + deeper

    @endpoint
    async def fail(self, why: str) -> None:
        raise ValueError(why)

    @endpoint
    def fail_plain(self, why: str) -> None:
        raise ValueError(why)

    @endpoint
    def chain(self) -> tuple[int, ...]:
        return calling.get()

    @endpoint
    async def chain_async(self) -> tuple[int, ...]:
        return calling.get()

    def unmarked(self) -> None:
        raise AssertionError("never called")


Call = Callable[..., Coroutine[Any, Any, Any]]
Scene = Callable[[Subject, Call], Awaitable[None]]


def play(scene: Scene) -> None:
    """Run a scene with a performer of a Subject, in a loop of its own; nothing in it takes 20 seconds."""

    async def main() -> None:
        subject = Subject()
        subject.loop = asyncio.get_running_loop()
        subject.performer = performer = Performer(subject)

        async def call(name: str, *args: Any, chain: tuple[int, ...] = (), **kwargs: Any) -> Any:
            return await performer.perform(name, args, kwargs, (*chain, next(call_ids)))

        await asyncio.wait_for(scene(subject, call), 20)

    asyncio.run(main())


def test_mixed_endpoints_run_one_at_a_time_in_the_order_of_the_calls() -> None:
    async def scene(subject: Subject, call: Call) -> None:
        calls = [call("slow" if k % 3 else "plain", k) for k in range(100)]
        assert await asyncio.gather(*calls) == list(range(100))
        assert subject.log == list(range(100))
        assert subject.most == 1

    play(scene)


def test_a_plain_endpoint_does_not_block_the_loop_but_keeps_its_turn() -> None:
    async def scene(subject: Subject, call: Call) -> None:
        waiting = asyncio.ensure_future(call("wait"))
        next_one = asyncio.ensure_future(call("slow", 1))
        assert await asyncio.to_thread(subject.entered.wait, 10)  # the loop runs on
        assert not next_one.done()
        assert subject.log == []
        subject.thread_may_go.set()
        assert (await waiting) != threading.main_thread().name
        assert await next_one == 1

    play(scene)


def test_plain_endpoints_run_in_one_and_the_same_thread() -> None:
    """What they keep in thread-local state, CUDA's device for one, is there the next time."""

    async def scene(subject: Subject, call: Call) -> None:
        subject.thread_may_go.set()
        assert len({await call("wait") for _ in range(5)}) == 1

    play(scene)


@pytest.mark.parametrize("kind", ["back", "back_plain"])
def test_a_call_back_to_itself_does_not_hang(kind: str) -> None:
    async def scene(subject: Subject, call: Call) -> None:
        assert await call(kind, 3, kind) == 3
        assert await call("slow", 7) == 7  # and the turn is free again

    play(scene)


def test_a_call_back_does_not_let_others_in() -> None:
    async def scene(subject: Subject, call: Call) -> None:
        first = asyncio.ensure_future(call("back", 2, "back"))
        second = asyncio.ensure_future(call("slow", 1))
        await asyncio.gather(first, second)
        assert subject.most == 1

    play(scene)


def test_the_chain_goes_along_and_stays_its_calls_own() -> None:
    async def scene(subject: Subject, call: Call) -> None:
        assert (await call("chain", chain=(1,)))[:-1] == (1,)
        assert (await call("chain_async", chain=(2,)))[:-1] == (2,)
        plain = asyncio.ensure_future(call("chain", chain=(3,)))
        other = asyncio.ensure_future(call("chain_async", chain=(4,)))
        assert ((await plain)[:-1], (await other)[:-1]) == ((3,), (4,))

    play(scene)
    assert calling.get() == ()


@pytest.mark.parametrize("kind", ["fail", "fail_plain"])
def test_what_an_endpoint_raises_is_raised_and_the_turn_goes_on(kind: str) -> None:
    async def scene(subject: Subject, call: Call) -> None:
        with pytest.raises(ValueError, match="no reason"):
            await call(kind, "no reason")
        with pytest.raises(TypeError, match="why"):
            await call(kind)
        assert await call("plain", 1) == 1

    play(scene)


def test_a_cancelled_call_gives_its_turn_away() -> None:
    async def scene(subject: Subject, call: Call) -> None:
        holding = asyncio.ensure_future(call("wait"))
        waiting = asyncio.ensure_future(call("slow", 1))
        last = asyncio.ensure_future(call("slow", 2))
        await asyncio.sleep(0)
        waiting.cancel()
        subject.thread_may_go.set()
        await holding
        assert await last == 2
        assert subject.log == [2]

    play(scene)


@pytest.mark.parametrize("name", ["unmarked", "nothing", "_enter", "__init__"])
def test_only_endpoints_are_called(name: str) -> None:
    async def scene(subject: Subject, call: Call) -> None:
        with pytest.raises(AttributeError, match="endpoints: back"):
            await call(name)

    play(scene)


def test_a_call_back_that_comes_too_late_waits_for_its_turn() -> None:
    """The endpoint that made the call has ended without awaiting it: nothing waits for the call back."""

    async def scene(subject: Subject, call: Call) -> None:
        [made_it] = await call("chain")
        holding = asyncio.ensure_future(call("wait"))
        await asyncio.to_thread(subject.entered.wait)
        late = asyncio.ensure_future(call("slow", 1, chain=(made_it, 7)))
        await asyncio.sleep(0)
        assert subject.log == []
        subject.thread_may_go.set()
        await holding
        assert await late == 1

    play(scene)
