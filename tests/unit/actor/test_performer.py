"""One rank's endpoints: one at a time, in order, async and plain alike; a call back to itself does not hang."""

import asyncio
import threading

import pytest

from forgectl.actor.endpoint import endpoint
from forgectl.actor.performer import Performer, calling


class Subject:
    def __init__(self):
        self.log = []
        self.inside = 0
        self.most = 0
        self.thread_may_go = threading.Event()
        self.entered = threading.Event()
        self.performer = None

    def _enter(self, k):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.log.append(k)

    @endpoint
    async def slow(self, k):
        self._enter(k)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.inside -= 1
        return k

    @endpoint
    def plain(self, k):
        self._enter(k)
        self.inside -= 1
        return k

    @endpoint
    def wait(self):
        self.entered.set()
        assert self.thread_may_go.wait(10)
        return threading.current_thread().name

    @endpoint
    async def back(self, depth, kind):
        """Calls itself through another mesh's chain, as its own handle would."""
        if depth == 0:
            return 0
        return 1 + await self.performer.perform(kind, (depth - 1, kind), {}, calling.get())

    @endpoint
    def back_plain(self, depth, kind):
        if depth == 0:
            return 0
        chain = calling.get()
        return 1 + asyncio.run_coroutine_threadsafe(
            self.performer.perform(kind, (depth - 1, kind), {}, chain), self.loop
        ).result(10)

    @endpoint
    async def fail(self, why):
        raise ValueError(why)

    @endpoint
    def fail_plain(self, why):
        raise ValueError(why)

    @endpoint
    def chain(self):
        return calling.get()

    @endpoint
    async def chain_async(self):
        return calling.get()

    def unmarked(self):
        raise AssertionError("never called")


def play(scene):
    """Run a scene with a performer of a Subject, in a loop of its own; nothing in it takes 20 seconds."""

    async def main():
        subject = Subject()
        subject.loop = asyncio.get_running_loop()
        subject.performer = performer = Performer("mesh", subject)

        async def call(name, *args, chain=(), **kwargs):
            return await performer.perform(name, args, kwargs, chain)

        return await asyncio.wait_for(scene(subject, call), 20)

    return asyncio.run(main())


def test_mixed_endpoints_run_one_at_a_time_in_the_order_of_the_calls():
    async def scene(subject, call):
        calls = [call("slow" if k % 3 else "plain", k) for k in range(100)]
        assert await asyncio.gather(*calls) == list(range(100))
        assert subject.log == list(range(100))
        assert subject.most == 1

    play(scene)


def test_a_plain_endpoint_does_not_block_the_loop_but_keeps_its_turn():
    async def scene(subject, call):
        waiting = asyncio.ensure_future(call("wait"))
        next_one = asyncio.ensure_future(call("slow", 1))
        while not subject.entered.is_set():
            await asyncio.sleep(0.001)  # the loop runs on
        assert not next_one.done()
        assert subject.log == []
        subject.thread_may_go.set()
        assert (await waiting) != threading.main_thread().name
        assert await next_one == 1

    play(scene)


def test_plain_endpoints_run_in_one_and_the_same_thread():
    """What they keep in thread-local state, CUDA's device for one, is there the next time."""

    async def scene(subject, call):
        subject.thread_may_go.set()
        assert len({await call("wait") for _ in range(5)}) == 1

    play(scene)


@pytest.mark.parametrize("kind", ["back", "back_plain"])
def test_a_call_back_to_itself_does_not_hang(kind):
    async def scene(subject, call):
        assert await call(kind, 3, kind) == 3
        assert await call("slow", 7) == 7  # and the turn is free again

    play(scene)


def test_a_call_back_does_not_let_others_in():
    async def scene(subject, call):
        first = asyncio.ensure_future(call("back", 2, "back"))
        second = asyncio.ensure_future(call("slow", 1))
        await asyncio.gather(first, second)
        assert subject.most == 1

    play(scene)


def test_the_chain_goes_along_and_stays_its_calls_own():
    async def scene(subject, call):
        assert await call("chain", chain=("caller",)) == ("caller", "mesh")
        assert await call("chain_async", chain=("other",)) == ("other", "mesh")
        both = await asyncio.gather(
            asyncio.ensure_future(call("chain", chain=("a",))), asyncio.ensure_future(call("chain_async", chain=("b",)))
        )
        assert both == [("a", "mesh"), ("b", "mesh")]
        return calling.get()

    play(scene)
    assert calling.get() == ()


@pytest.mark.parametrize("kind", ["fail", "fail_plain"])
def test_what_an_endpoint_raises_is_raised_and_the_turn_goes_on(kind):
    async def scene(subject, call):
        with pytest.raises(ValueError, match="no reason"):
            await call(kind, "no reason")
        with pytest.raises(TypeError, match="why"):
            await call(kind)
        assert await call("plain", 1) == 1

    play(scene)


def test_a_cancelled_call_gives_its_turn_away():
    async def scene(subject, call):
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
def test_only_endpoints_are_called(name):
    async def scene(subject, call):
        with pytest.raises(AttributeError, match="endpoints: back"):
            await call(name)

    play(scene)
