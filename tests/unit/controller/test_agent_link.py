"""A link to a host that misbehaves: whatever it does, its host is lost in the end, with a reason that names it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from typing import Any

import pytest

from forgectl import __version__
from forgectl.controller import agent_link
from forgectl.controller.agent_link import AgentLink
from forgectl.controller.commands import Command
from forgectl.controller.host_claims import check_event
from forgectl.controller.records import AgentLost, AgentUp, Record
from forgectl.controller.state import HostState
from forgectl.model.plan import HostPlan
from forgectl.protocol.supervision import (
    AGENT_TO_CONTROLLER,
    CONTROLLER_TO_AGENT,
    AgentConfig,
    Event,
    GetStats,
    Notice,
    Ping,
    Pong,
    Stats,
    Stop,
    Synced,
    Welcome,
)
from forgectl.wire.envelope import MAX_LINE, Hello, ProtocolError
from forgectl.wire.stream import Stream
from tests.conftest import eventually
from tests.unit.controller.test_host_claims import two

CONFIG = AgentConfig(__version__, "t-0000", "b", "/s", "/r", 3.0, 1)


class Way:
    """The way to an agent that is played by a coroutine: each connection is a new socket pair."""

    may_drop = True

    def __init__(self, play: Callable[[Stream], Any]) -> None:
        self.connections = 0
        self._play = play
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> Stream | None:
        self.connections += 1
        ours, theirs = socket.socketpair()
        there = Stream(*await asyncio.open_unix_connection(sock=theirs), CONTROLLER_TO_AGENT)
        self._tasks.add(asyncio.create_task(self._serve(there)))
        return Stream(*await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE), AGENT_TO_CONTROLLER)

    async def _serve(self, stream: Stream) -> None:
        with contextlib.suppress(ConnectionError):
            await self._play(stream)
        stream.abort()

    async def start_agent(self, config: AgentConfig) -> int:
        raise AssertionError("there is one")

    def kill_agent(self, stream: Stream) -> None: ...

    def rebooted(self, boot: str | None) -> bool:
        return False

    async def wait_gone(self, pid: int | None, boot: str | None) -> None: ...

    def close(self) -> None: ...


class Owner:
    """A controller of a run that has a mesh on host b."""

    def __init__(self) -> None:
        self.history = two()
        self.history.run.hosts["b"] = self.host = HostState(HostPlan("b", False, "python3", ""))
        self.records: list[Record] = []
        self.commands: list[Command] = []

    def record(self, record: Record) -> None:
        self.records.append(record)
        self.history.record(record)

    def take_event(self, host: str, event: Event, *, catching_up: bool) -> bool:
        return check_event(self.history.run, host, event, catching_up=catching_up) is not None

    def commands_for(self, host: str, subjects: Collection[str] | None = None) -> list[Command]:
        return self.commands

    def last_commands_for(self, host: str) -> list[Stop]:
        return [Stop("m", 0, 0.0)]

    def changed(self) -> None: ...

    def synced(self, host: str) -> None: ...

    def wants_back(self, host: str) -> bool:
        return False

    def may_leave(self, host: str) -> bool:
        return False

    def logs_fetched(self, host: str) -> bool:
        return True

    @property
    def why(self) -> str:
        """Why the host was lost in the end."""
        [last] = [r for r in self.records if isinstance(r, AgentLost)]
        assert last.final
        assert self.host.state == "lost"
        return last.why


async def greet(stream: Stream) -> None:
    assert isinstance(await stream.receive(), Hello)
    stream.send(Welcome(__version__, "b", 7, "boot"))


async def obey(stream: Stream, seen: list[Any] | None = None) -> None:
    """Answer Pings; what else comes goes to `seen`."""
    while (command := await stream.receive()) is not None:
        if isinstance(command, Ping):
            stream.send(Pong())
        elif seen is not None:
            seen.append(command)


def lost(play: Callable[[Stream], Any], owner: Owner | None = None) -> str:
    """Why the host of an agent that is played so is lost."""
    owner = owner or Owner()

    async def go() -> None:
        link = AgentLink(owner.host, lambda sweep: CONFIG, Way(play), owner)
        await asyncio.wait_for(link.run(), 60)

    asyncio.run(go())
    return owner.why


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Pong(), "a Pong that nobody asked for"),
        (Stats({}), "Stats, which nobody asked for"),
        (Welcome(__version__, "b", 7, "boot"), "Welcome, which nobody asked for"),
        (Event(1, Pong()), "unknown message 'Pong'"),  # type: ignore[arg-type]
        (Event(1 << 60, Notice("m", "x")), "which is impossible"),
    ],
)
def test_what_no_agent_sends_ends_its_host(message: Any, words: str) -> None:
    seen: list[Any] = []

    async def play(stream: Stream) -> None:
        await greet(stream)
        assert isinstance(await stream.receive(), Ping)
        stream.send(Pong())
        stream.send(Synced())
        stream.send(message)
        await obey(stream, seen)

    why = lost(play)
    assert why.startswith("host b was given up: ") and words in why
    assert seen[-1] == Stop("m", 0, 0.0), "an agent that is only broken still ends what it runs"


@pytest.mark.parametrize(
    ("welcome", "words"),
    [
        (Welcome(__version__, "a", 7, "boot"), "the one of host 'a'"),
        (Welcome(__version__, "b", -7, "boot"), "pid -7"),
        (Welcome(__version__, "b", 7, "x" * 1000), "a boot id"),
        (Pong(), "it sent Pong instead of a Welcome"),
    ],
)
def test_a_welcome_that_is_not_of_this_host_s_agent(welcome: Any, words: str) -> None:
    async def play(stream: Stream) -> None:
        await stream.receive()
        stream.send(welcome)
        await obey(stream)

    assert words in lost(play)


def test_an_end_that_is_never_reported_ends_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "STOP_SECONDS", 0.5)
    owner = Owner()
    owner.commands = [Stop("m", 0, 0.1)]

    async def play(stream: Stream) -> None:
        await greet(stream)
        stream.send(Synced())
        await obey(stream)

    assert lost(play, owner) == "host b was given up: it did not report the end of mesh m within 0.6 s"


def test_events_that_say_nothing_new_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "IDLE_EVENTS", 100)

    async def play(stream: Stream) -> None:
        await greet(stream)
        for seq in range(1, 200):
            stream.send(Event(seq, Notice("unknown", "x")))
        await obey(stream)

    assert lost(play) == "host b was given up: it sent 101 events that say nothing new"


def test_events_that_say_nothing_new_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "IDLE_BYTES", 1 << 20)

    async def play(stream: Stream) -> None:
        await greet(stream)
        for seq in range(1, 20):
            stream.send(Event(seq, Notice("unknown", "x" * 100_000)))
        await obey(stream)

    assert lost(play) == "host b was given up: it sent 11 events that say nothing new"


def test_a_fault_of_ours_ends_the_host_and_not_the_link_alone(capsys: pytest.CaptureFixture[str]) -> None:
    owner = Owner()
    owner.take_event = lambda *_, **__: 1 / 0  # type: ignore[method-assign, assignment]

    async def play(stream: Stream) -> None:
        await greet(stream)
        stream.send(Event(1, Notice("m", "x")))
        await obey(stream)

    assert "could not be dealt with (ZeroDivisionError: division by zero)" in lost(play, owner)
    assert "Traceback" in capsys.readouterr().err


def test_connections_that_end_at_once_have_an_end_and_leave_one_record() -> None:
    owner = Owner()

    async def play(stream: Stream) -> None:
        await greet(stream)
        await stream.drain()

    assert "host b was unreachable for longer than its lease of 3 s" in lost(play, owner)
    assert len([r for r in owner.records if isinstance(r, AgentUp)]) == 1


def test_answers_that_come_too_late_are_no_breach() -> None:
    """Each question has one answer, however late; an answer more is too many."""
    owner, answers = Owner(), 3

    async def play(stream: Stream) -> None:
        await greet(stream)
        asked = 0
        while (command := await stream.receive()) is not None:
            if isinstance(command, Ping):
                stream.send(Pong())
            elif isinstance(command, GetStats) and (asked := asked + 1) == 2:
                for _ in range(answers):
                    stream.send(Stats({}))

    async def go() -> None:
        link = AgentLink(owner.host, lambda sweep: CONFIG, Way(play), owner)
        task = asyncio.create_task(link.run())
        await eventually(lambda: owner.host.state == "up", "the host")
        assert await link.ask(GetStats(), Stats, 0.05) is None
        assert await link.ask(GetStats(), Stats, 10.0) == Stats({})
        await asyncio.wait_for(task, 30)

    asyncio.run(go())
    assert owner.why == "host b was given up: it sent Stats, which nobody asked for"


def test_an_answer_that_its_asker_refuses_ends_the_host() -> None:
    owner = Owner()

    async def play(stream: Stream) -> None:
        await greet(stream)
        while (command := await stream.receive()) is not None:
            stream.send(Pong() if isinstance(command, Ping) else Stats({}))

    def refuse(answer: Any) -> None:
        raise ProtocolError("it lied")

    async def go() -> None:
        link = AgentLink(owner.host, lambda sweep: CONFIG, Way(play), owner)
        task = asyncio.create_task(link.run())
        await eventually(lambda: owner.host.state == "up", "the host")
        assert await link.ask(GetStats(), Stats, 10.0, refuse) is None
        await asyncio.wait_for(task, 30)

    asyncio.run(go())
    assert owner.why == "host b was given up: it lied"
