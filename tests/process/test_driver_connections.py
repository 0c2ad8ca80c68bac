"""A driver that dials the messengers of other machines itself: real messengers, and both ends of calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from forgectl.errors import UnreachableError
from forgectl.messages import pickling
from forgectl.messages.call import Call
from forgectl.messages.calling import Exchange, Here
from forgectl.messages.frames import Address
from forgectl.messages.serving import Server
from forgectl.names import DRIVER_KEY
from tests.process.messenger_lab import RANK, Lab

SECONDS = 30.0
THERE = Address("a", RANK)


def _sent(exchange: Exchange, what: Any) -> Call[Any]:
    """A call of the rank, which answers with what it is sent."""
    call = Call("a call", 1, _loads, lambda values: values[0])
    exchange.call(call, [THERE], pickling.dumps(what))
    return call


class Run:
    """The launching machine and host a, with a rank on that, and the exchange of the driver."""

    def __init__(self, lab: Lab, knows_key: bool = True) -> None:
        lab.members = lab.keys.members(["", "a", "b", DRIVER_KEY])
        self.lab = lab
        self.far = lab.host("a", ("",))
        self.near = lab.host("", ("a",), driver=lab.keys.secret(DRIVER_KEY) if knows_key else "")
        self.link()
        self.exchange = Exchange(Here(str(self.near.folder), "", os.getpid()))
        self.log: list[Any] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.server = Server(self.far.folder / RANK, self._perform, repr, lambda *_: None)

    def link(self) -> None:
        self.near.tell(links={"a": self.far.tcp()})

    async def _perform(self, what: Any) -> Any:
        self.log.append(what)
        await self.may_answer.wait()
        return what

    def begin(self, what: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._call(what))

    async def _call(self, what: Any) -> Any:
        return await asyncio.wait_for(_sent(self.exchange, what), SECONDS)

    @property
    def far_way(self) -> Any:
        return self.exchange._far["a"].way if "a" in self.exchange._far else None

    async def connected(self) -> None:
        """Until calls go straight there."""
        while self.far_way is None or self.exchange._lines[THERE].way is not self.far_way:
            assert await self._call("warm") == "warm"

    def close(self) -> None:
        far = self.exchange._far.get("a")
        for source in [*(far.hang_up() if far else []), self.exchange._near]:
            source.socket.close()
        self.server._socket.socket.close()


def _loads(kind: int, body: Sequence[Any]) -> Any:
    return pickling.loads(body)


@pytest.fixture
def play(lab: Lab) -> Callable[..., None]:
    def play(body: Callable[[Run], Any], **options: Any) -> None:
        async def main() -> None:
            run = Run(lab, **options)
            try:
                await body(run)
            finally:
                run.close()

        asyncio.run(main())

    return play


@pytest.fixture
def lab() -> Iterator[Lab]:
    with contextlib.closing(Lab()) as lab:
        yield lab


def test_calls_go_straight_there_and_need_no_messenger_here(play: Callable[..., None]) -> None:
    async def body(run: Run) -> None:
        await run.connected()
        run.near.process.kill()
        run.near.process.wait()
        for k in range(100):
            assert await run.begin(k) == k
        assert run.log[-100:] == list(range(100))

    play(body)


def test_calls_keep_their_order_when_their_way_changes(play: Callable[..., None]) -> None:
    async def body(run: Run) -> None:
        sent = 0
        while run.far_way is None or run.exchange._lines[THERE].way is not run.far_way or sent < 500:
            calls = [run.begin(sent + k) for k in range(7)]
            sent += 7
            assert await asyncio.gather(*calls) == list(range(sent - 7, sent))
        assert run.log == list(range(sent))

    play(body)


def test_a_driver_without_a_key_calls_by_way_of_its_messenger(play: Callable[..., None]) -> None:
    async def body(run: Run) -> None:
        for k in range(300):
            assert await run.begin(k) == k
        assert run.far_way is None and not run.exchange._far["a"].broken

    play(body, knows_key=False)


def test_what_is_under_way_on_a_connection_that_breaks_is_lost_and_what_comes_later_waits(
    play: Callable[..., None],
) -> None:
    """For the messenger's successor, at another port. Nothing is sent twice, or by another way meanwhile."""

    async def body(run: Run) -> None:
        await run.connected()
        run.log.clear()
        run.may_answer.clear()
        under_way = [run.begin(f"lost {k}") for k in range(3)]
        await _until(lambda: len(run.log) == 3)
        run.far.process.kill()
        run.far.process.wait()
        for call in under_way:
            with pytest.raises(UnreachableError, match="connection to host a was lost while this call was under way"):
                await call
        waiting = [run.begin(k) for k in range(20)]
        cancelled = run.begin("cancelled")
        await asyncio.sleep(0)
        cancelled.cancel()
        run.may_answer.set()
        await asyncio.sleep(0.3)
        assert not any(call.done() for call in waiting)
        run.far.start()
        run.link()
        assert await asyncio.gather(*waiting) == list(range(20))
        assert run.log == [f"lost {k}" for k in range(3)] + list(range(20))
        assert run.far_way is not None and run.exchange._lines[THERE].way is run.far_way

    play(body)


def test_a_machine_that_can_be_dialled_no_more_is_called_by_way_of_the_messenger(play: Callable[..., None]) -> None:
    """Such as one that is reached through ssh from now on."""

    async def body(run: Run) -> None:
        await run.connected()
        run.far.process.kill()
        run.far.process.wait()
        run.near.tell(links={})
        waiting: list[asyncio.Future[Any]] = []
        while not waiting:  # what is sent before the end is noticed is lost
            call = run.begin(0)
            await asyncio.wait([call], timeout=0.3)
            waiting += [] if call.done() and isinstance(call.exception(), UnreachableError) else [call]
        waiting += [run.begin(k) for k in range(1, 5)]
        await _until(lambda: not run.exchange._far["a"].broken)
        run.far.start()
        run.near.tell(links={"a": run.far.unix()})
        assert await asyncio.gather(*waiting) == list(range(5))
        assert run.far_way is None

    play(body)


def test_a_process_that_is_not_the_driver_does_not_dial(lab: Lab) -> None:
    """Two with one key would take the connection from each other."""

    async def main() -> None:
        run = Run(lab)
        child = Exchange(Here(str(run.near.folder), "", os.getpid() + 1))
        try:
            for k in range(50):
                assert await _sent(child, k) == k
            assert child._far["a"].way is None and child._far["a"].monitor is None
        finally:
            child._near.socket.close()
            run.close()

    asyncio.run(main())


async def _until(condition: Callable[[], bool]) -> None:
    async def watch() -> None:
        while not condition():  # noqa: ASYNC110  (nobody can set an event for it)
            await asyncio.sleep(0.005)

    await asyncio.wait_for(watch(), SECONDS)
