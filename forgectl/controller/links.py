"""The controller's link to one agent: start it, greet it, pass commands and events, and replace it when it dies."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from forgectl import __version__
from forgectl.controller.commands import Command, key
from forgectl.controller.records import AgentLost, AgentUp, Happened, Record
from forgectl.controller.state import Host
from forgectl.errors import ForgeError, UnreachableError
from forgectl.protocol import (
    Ack,
    AgentConfig,
    Event,
    GetStats,
    Hello,
    Ping,
    Pong,
    ProtocolError,
    Quit,
    RankStats,
    Refusal,
    Stats,
    Synced,
    Welcome,
)
from forgectl.stream import Stream
from forgectl.wire import HANDSHAKE_SECONDS

A = TypeVar("A")
Use = dict[str, dict[int, RankStats]]
STATS_SECONDS = 2.0
FENCE_SECONDS = 1.0
"""What an agent needs, once its lease has run out, to end all that it has started."""


class Way(Protocol):
    """How the agent of one host is reached: transport.local or transport.remote."""

    may_drop: bool  # whether a connection may be lost while the agent lives

    async def connect(self) -> Stream | None: ...

    async def start_agent(self, config: AgentConfig) -> int: ...

    def put_down(self, stream: Stream) -> None: ...

    def rebooted(self, boot: str | None) -> bool: ...

    async def wait_gone(self, pid: int | None, boot: str | None) -> None: ...

    def close(self) -> None: ...


class Owner(Protocol):
    """What a link needs of its controller."""

    def record(self, record: Record) -> None: ...

    def commands_for(self, host: str) -> list[Command]: ...

    def changed(self) -> None: ...

    def logs_are_home(self, host: str) -> bool: ...


class Link:
    """Keeps one host's agent connected from the start of the run to its end.

    `unsure`: an agent was there that the journal does not know of any more. Of a run that was `adopted`, an ssh host
    whose agent has fenced itself meanwhile gets no other: a look at `status` must not revive what has ended.
    """

    def __init__(
        self,
        host: Host,
        config: Callable[[bool], AgentConfig],
        way: Way,
        owner: Owner,
        *,
        unsure: bool = False,
        adopted: bool = False,
    ) -> None:
        self.host = host
        self.name = host.plan.name
        self._config = config  # of an agent that is (not) the first of its host
        self._way = way
        self._owner = owner
        self._unsure = unsure
        self._adopted = adopted
        self._stream: Stream | None = None
        self._synced = False
        self._sent: set[tuple[object, ...]] = set()
        self._quit_sent = False
        self._questions: dict[type, asyncio.Future[Any]] = {}  # answer's type → what waits for it
        self._turns: dict[type, asyncio.Lock] = {}
        self._lease = config(False).lease
        self._interval = min(self._lease / 6, 2.0)  # between a Pong and the next Ping
        self._heard = time.monotonic()
        self._failures = 0

    @property
    def _patience(self) -> float:
        """Seconds of silence after which a connection is given up: early enough for another, where it may drop."""
        return max(3 * self._interval, min(self._lease / 3, 8.0)) if self._way.may_drop else self._lease

    async def run(self) -> None:
        """Serve until the agent has quit on command."""
        try:
            while not self._quit_sent and await self._once():
                pass
            if self._quit_sent:
                await self._way.wait_gone(self.host.pid, self.host.boot_id)
                self.host.state = "gone"
        finally:
            self._way.close()

    async def _once(self) -> bool:
        """One connection, or one attempt at it; whether to go on."""
        try:
            stream = await self._connect()
            if stream is None:
                if self._is_to_quit():
                    return False  # there is nothing left to begin one for
                return await self._begin_agent()
        except (ForgeError, ProtocolError) as e:
            return await self._bear(e if isinstance(e, ForgeError) else UnreachableError(f"host {self.name}: {e}"))
        self._failures = 0
        try:
            await self._converse(stream)
        except ForgeError as e:
            self._owner.record(AgentLost(self.name, e.message, e.exit_code, e.hint, final=True))
            return False
        except (ProtocolError, ConnectionError, asyncio.TimeoutError):
            pass
        finally:
            self._stream, self._synced = None, False
            stream.abort()
            for question in self._questions.values():
                question.cancel()
        return True

    async def _connect(self) -> Stream | None:
        """A connection, or None where no agent lives; raises ForgeError, at the latest when its lease is over."""
        if self.host.pid is None:
            return await self._way.connect()
        left = self._heard + self._lease + FENCE_SECONDS - time.monotonic()
        try:
            return await asyncio.wait_for(self._way.connect(), max(left, 0.1))
        except asyncio.TimeoutError:
            raise UnreachableError(f"host {self.name}: no answer") from None

    def _is_to_quit(self) -> bool:
        return any(isinstance(c, Quit) for c in self._owner.commands_for(self.name))

    async def _bear(self, error: ForgeError) -> bool:
        """The host was not reached: wait a little, as long as its agent may live; whether to try again."""
        left = self._heard + self._lease + FENCE_SECONDS - time.monotonic()
        known = self.host.pid is not None or self._unsure
        if self._is_to_quit():
            return False
        if not known or left <= 0:
            why = error.message
            if known:
                why = (
                    f"host {self.name} was unreachable for longer than its lease of {self._lease:g} s, "
                    f"at the end of which its agent ended all that it ran ({error.message})"
                )
            self._owner.record(AgentLost(self.name, why, error.exit_code, error.hint, final=True))
            return False
        if self.host.state != "reconnecting":
            self.host.state = "reconnecting"
            self._owner.changed()
        self._failures += 1
        await asyncio.sleep(min(left, random.uniform(0.5, 1.0) * min(0.1 * 2.0**self._failures, 2.0)))
        return True

    async def _begin_agent(self) -> bool:
        """Start an agent where none lives; the ranks of an earlier one are gone with it."""
        first = self.host.pid is None and not self._unsure
        why = "" if first else self._why_gone()
        if self._adopted and self._way.may_drop:
            self._owner.record(AgentLost(self.name, why, final=True))
            return False
        try:
            pid = await self._way.start_agent(self._config(not first))
        except ForgeError as e:
            self._owner.record(AgentLost(self.name, e.message, e.exit_code, e.hint, final=True))
            return False
        if not first and pid != self.host.pid:
            self._owner.record(AgentLost(self.name, why))
        return True

    def _why_gone(self) -> str:
        if self._way.rebooted(self.host.boot_id):
            return f"host {self.name} was rebooted"
        return f"the agent on host {self.name} was killed or fenced itself, and its ranks ended with it"

    # ------------------------------------------------------------ one connection

    async def _converse(self, stream: Stream) -> None:
        stream.send(Hello(__version__, self._config(False).run, self.host.last_seq, self.host.pid or 0))
        try:
            welcome = await stream.receive(max(self._patience, HANDSHAKE_SECONDS))
        except asyncio.TimeoutError:
            self._way.put_down(stream)
            return
        if isinstance(welcome, Refusal):
            raise UnreachableError(f"host {self.name}: {welcome.message}", hint=welcome.hint)
        if not isinstance(welcome, Welcome):
            raise ProtocolError("no welcome")
        self._adopted = False
        self._sent = set()
        self._stream = stream
        self._owner.record(AgentUp(self.name, welcome.pid, welcome.boot_id))
        self._ping(stream)
        try:
            while True:
                message = await stream.receive(self._patience)
                if message is None:
                    return
                self.host.last_seen = time.time()
                self._take(stream, message)
        except asyncio.TimeoutError:
            self._way.put_down(stream)

    def _take(self, stream: Stream, message: object) -> None:
        if isinstance(message, Event):
            self._owner.record(Happened(self.name, message.seq, message.what))
            stream.send(Ack(message.seq))
        elif isinstance(message, Pong):
            self._heard = time.monotonic()
            asyncio.get_running_loop().call_later(self._interval, self._ping, stream)
        elif isinstance(message, Synced):
            self._synced = True
            self.push()
        elif (question := self._questions.get(type(message))) is not None and not question.done():
            question.set_result(message)

    def _ping(self, stream: Stream) -> None:
        """Say that its last Pong has arrived: the agent counts its lease from then, and ends before we call it lost."""
        stream.send(Ping())

    # ------------------------------------------------------------ commands

    def push(self) -> None:
        """Send what the agent should be doing and has not been told over this connection."""
        if self._stream is None or not self._synced:
            return
        for command in self._owner.commands_for(self.name):
            if isinstance(command, Quit) and not self._owner.logs_are_home(self.name):
                continue  # pushed again once they are
            if key(command) not in self._sent:
                self._sent.add(key(command))
                self._quit_sent = self._quit_sent or isinstance(command, Quit)
                self._stream.send(command)

    async def ask(self, request: Any, kind: type[A], timeout: float) -> A | None:
        """The agent's answer to a question; None where it is not connected, or does not answer in time."""
        async with self._turns.setdefault(kind, asyncio.Lock()):
            if self._stream is None:
                return None
            question: asyncio.Future[A] = asyncio.get_running_loop().create_future()
            self._questions[kind] = question
            self._stream.send(request)
            await asyncio.wait({question}, timeout=timeout)
            del self._questions[kind]
            if question.done() and not question.cancelled():
                return question.result()
            question.cancel()
            return None

    async def stats(self) -> Use:
        """What the ranks of this host use now; nothing where the agent does not answer in time."""
        answer = await self.ask(GetStats(), Stats, STATS_SECONDS)
        return answer.meshes if answer else {}
