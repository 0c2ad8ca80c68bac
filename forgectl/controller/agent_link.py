"""The controller's link to one agent: it starts the agent, passes commands and events, and replaces a dead agent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from forgectl.controller.commands import Command, key
from forgectl.controller.host_claims import check_welcome
from forgectl.controller.records import AgentLost, AgentUp, Record
from forgectl.controller.state import HostState
from forgectl.errors import ForgeError, UnreachableError
from forgectl.protocol.supervision import (
    Ack,
    AgentConfig,
    Event,
    GetStats,
    Ping,
    Pong,
    Quit,
    RankStats,
    Stats,
    Stop,
    Synced,
    Welcome,
)
from forgectl.system.tasks import within
from forgectl.version import __version__
from forgectl.wire.envelope import Hello, ProtocolError, Refusal
from forgectl.wire.stream import Stream
from forgectl.wire.unix_sockets import HANDSHAKE_SECONDS

A = TypeVar("A")
Check = Callable[[Any], None]
Use = dict[str, dict[int, RankStats]]
STATS_SECONDS = 2.0
FENCE_SECONDS = 1.0
"""What an agent needs after the end of its lease to end all that it started."""
STOP_SECONDS = 60.0
"""What a host may take, beyond the grace, to report the end of a generation. An agent waits 5 s after SIGKILL, and
twice 10 s for a fork server that hangs."""
RETURN_SECONDS = 2.0
"""The pause between two attempts to start an agent on a host that was lost."""
IDLE_EVENTS = 100_000
IDLE_BYTES = 256 << 20
"""Most events of one connection, and their bytes, that may change nothing: for example, replayed ones."""
FIRST_FAILURES = 10
"""Connections that may end at once before the first agent of a host has answered."""
MOST_TEXT = 500
"""Most characters shown of what a host did."""


def note(text: str) -> None:
    """Write a line to the controller's log, if there is room."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _no_check(answer: Any) -> None:
    """Accept any answer."""


class Way(Protocol):
    """How the agent of one host is reached: transport.local or transport.remote."""

    may_drop: bool  # whether a connection may be lost while the agent lives

    async def connect(self) -> Stream | None: ...

    async def start_agent(self, config: AgentConfig) -> int: ...

    def kill_agent(self, stream: Stream) -> None: ...

    def rebooted(self, boot: str | None) -> bool: ...

    async def wait_gone(self, pid: int | None, boot: str | None) -> None: ...

    def close(self) -> None: ...


class Owner(Protocol):
    """What a link needs of its controller."""

    def record(self, record: Record) -> None: ...

    def take_event(self, host: str, event: Event, *, catching_up: bool) -> bool: ...

    def commands_for(self, host: str, subjects: Collection[str] | None = None) -> list[Command]: ...

    def last_commands_for(self, host: str) -> list[Stop]: ...

    def changed(self) -> None: ...

    def logs_fetched(self, host: str) -> bool: ...

    def synced(self, host: str) -> None: ...

    def wants_back(self, host: str) -> bool: ...

    def may_leave(self, host: str) -> bool: ...


class AgentLink:
    """Keeps one host's agent connected from the start of the run to its end.

    `unsure`: the host may have an agent that a damaged journal no longer shows. `adopted`: this controller took the run
    over. Then an ssh host whose agent has fenced itself gets no new one: `forgectl status` must not revive a run that
    has ended.
    """

    def __init__(
        self,
        host: HostState,
        config: Callable[[bool], AgentConfig],
        way: Way,
        owner: Owner,
        *,
        unsure: bool = False,
        adopted: bool = False,
    ) -> None:
        self.host = host
        self.name = host.plan.name
        self._config = config  # takes whether the agent replaces an earlier one
        self._way = way
        self._owner = owner
        self._unsure = unsure
        self._adopted = adopted
        self._catching_up = adopted  # until its agent has sent the events that the journal may have lost
        self._stream: Stream | None = None
        self._synced = False
        self._sent: set[tuple[object, ...]] = set()
        self._quit_sent = False
        self._questions: dict[type, tuple[asyncio.Future[Any], Check]] = {}  # answer's type → what waits for it
        self._expected: dict[type, int] = {}  # answer's type → answers that this connection has yet to bring
        self._locks: dict[type, asyncio.Lock] = {}  # answer's type → one question at a time
        self._lease = config(False).lease
        self._interval = min(self._lease / 6, 2.0)  # between a Pong and the next Ping
        self._last_pong = time.monotonic()
        self._failures = 0
        self._pinged = False  # a Ping was sent, and its Pong has not come yet
        self._ponged = False  # a Pong has come over this connection
        self._received = 0  # bytes of this connection, before the current message
        self._idle_events = self._idle_bytes = 0
        self._barred = False  # it broke the protocol, or is of another version
        self._over = asyncio.Event()  # nobody waits for the host to come back any more
        self._ends: dict[tuple[str, int], float] = {}  # mesh and generation → when its end is overdue

    @property
    def _silence_limit(self) -> float:
        """Seconds of silence after which a connection is dropped. By ssh that is early enough for a second attempt."""
        return max(3 * self._interval, min(self._lease / 3, 8.0)) if self._way.may_drop else self._lease

    async def run(self) -> None:
        """Serve until the agent has quit on command, or the host is lost for good."""
        try:
            await self._serve()
        except Exception as e:  # a host must not be able to end its link, which would leave the run waiting
            note(traceback.format_exc())
            self._lose(f"what it sent could not be dealt with ({type(e).__name__}: {e})", hint="see controller.log")
        finally:
            self._way.close()

    async def _serve(self) -> None:
        while not self._quit_sent and (await self._once() or await self._comes_back()):
            pass
        if self._quit_sent:
            await self._way.wait_gone(self.host.pid, self.host.boot_id)
            self.host.state = "gone"

    async def _comes_back(self) -> bool:
        """Wait until a lost host has a new agent; False if it is not to come back, or the run ends before."""
        while not self._barred and self._owner.wants_back(self.name):
            self._over.clear()
            attempt, over = (asyncio.ensure_future(c) for c in (self._begin_anew(), self._over.wait()))
            await asyncio.wait({attempt, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if attempt.done() and attempt.result():
                return True
            attempt.cancel()
        return False

    async def _begin_anew(self) -> bool:
        """Start an agent on a host that was lost; if that fails, wait for a while. Returns whether it was started."""
        try:
            stream = await self._way.connect()
            if stream is None:
                await self._way.start_agent(self._config(True))
                self._last_pong = time.monotonic()
                self._failures, self._unsure, self._adopted, self._ends = 0, False, False, {}
                return True
            stream.abort()  # its agent is about to end
        except (ForgeError, ProtocolError, OSError):
            pass
        await asyncio.sleep(RETURN_SECONDS)
        return False

    def _record_loss(self, loss: AgentLost) -> None:
        """Record that the host is lost, unless it already is."""
        if not self.host.given_up:
            self._owner.record(loss)

    def _lose(self, what: str, hint: str | None) -> None:
        """Record the host as lost for good, with what it did as the reason."""
        self._barred = True
        why = f"host {self.name} was given up: {what[:MOST_TEXT]}"
        self._record_loss(AgentLost(self.name, why, UnreachableError.exit_code, hint, final=True))

    async def _once(self) -> bool:
        """Make one connection, or try to, and serve it; returns whether to go on."""
        try:
            stream = await self._connect()
            if stream is None:
                if self._is_to_quit():
                    return False  # a new agent would have nothing to do
                return await self._begin_agent()
        except (ForgeError, ProtocolError, OSError) as e:
            error = e if isinstance(e, ForgeError) else UnreachableError(f"host {self.name}: {e}")
            return await self._retry_or_lose(error)
        self._ponged = False
        try:
            await self._converse(stream)
        except ForgeError as e:
            self._barred = True
            self._record_loss(AgentLost(self.name, e.message, e.exit_code, e.hint, final=True))
            return False
        except ProtocolError as e:
            await self._break_off(stream, str(e))
            return False
        except (ConnectionError, asyncio.TimeoutError):
            pass
        finally:
            self._stream, self._synced = None, False
            stream.abort()
            for question, _ in self._questions.values():
                question.cancel()
        return self._ponged or await self._after_early_end()

    async def _break_off(self, stream: Stream, what: str) -> None:
        """Give up a host that broke the protocol. Its last commands let an agent that is only broken end its ranks."""
        for command in self._owner.last_commands_for(self.name):
            stream.send(command)
        self._stream = None  # nothing more is sent
        self._way.kill_agent(stream)
        hint = "its agent, or what stands between, does not behave; what still runs there ends with its lease"
        self._lose(what, hint)
        await stream.close()

    async def _after_early_end(self) -> bool:
        """Wait a little after a connection that ended before the first Pong: the next one may end early too.

        Returns whether to go on.
        """
        left = self._last_pong + self._lease + FENCE_SECONDS - time.monotonic()
        known = self.host.pid is not None or self._failures >= FIRST_FAILURES
        if left <= 0 and known and self._way.may_drop:  # not here: a local agent was killed, and gets a successor
            return await self._retry_or_lose(UnreachableError(f"host {self.name}: connections to it end at once"))
        await self._pause(max(left, 0.0))
        return True

    async def _connect(self) -> Stream | None:
        """A connection, or None if no agent is alive; raises ForgeError, at the latest after the agent's lease."""
        if self.host.pid is None:
            return await self._way.connect()
        left = self._last_pong + self._lease + FENCE_SECONDS - time.monotonic()
        try:
            return await within(max(left, 0.1), self._way.connect())
        except asyncio.TimeoutError:
            raise UnreachableError(f"host {self.name}: no answer") from None

    def _is_to_quit(self) -> bool:
        return any(isinstance(c, Quit) for c in self._owner.commands_for(self.name))

    async def _retry_or_lose(self, error: ForgeError) -> bool:
        """After a failed connection: wait a little while its agent may live, else record its loss; whether to retry."""
        left = self._last_pong + self._lease + FENCE_SECONDS - time.monotonic()
        known = self.host.pid is not None or self._unsure
        if self._is_to_quit():
            return False
        if not known or left <= 0:
            why = error.message
            if known:
                why = (
                    f"host {self.name} was unreachable for longer than its lease of {self._lease:g} s; "
                    f"at its end the agent ended all that it ran ({error.message})"
                )
            self._record_loss(AgentLost(self.name, why, error.exit_code, error.hint, final=True, lease=known))
            return False
        await self._pause(left)
        return True

    async def _pause(self, left: float) -> None:
        """Wait before the next attempt: a little longer each time, up to 2 s, but at most `left` seconds."""
        if self.host.state in ("up", "starting") and (self.host.pid is not None or self._unsure):
            self.host.state = "reconnecting"
            self._owner.changed()
        self._failures += 1
        await asyncio.sleep(min(left, random.uniform(0.5, 1.0) * min(0.1 * 2.0 ** min(self._failures, 9), 2.0)))

    async def _begin_agent(self) -> bool:
        """Start an agent where none is alive; the ranks of an earlier one ended with it. Returns whether to go on."""
        first = self.host.pid is None and not self._unsure
        why = "" if first else self._why_gone()
        if (self._adopted and self._way.may_drop) or (not first and self._owner.may_leave(self.name)):
            self._record_loss(AgentLost(self.name, why, final=True))
            return False
        try:
            pid = await self._way.start_agent(self._config(not first))
        except ForgeError as e:
            self._record_loss(AgentLost(self.name, e.message, e.exit_code, e.hint, final=True))
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
            welcome = await stream.receive(max(self._silence_limit, HANDSHAKE_SECONDS))
        except asyncio.TimeoutError:
            self._way.kill_agent(stream)
            return
        if welcome is None:
            return
        if isinstance(welcome, Refusal):
            what, hint = welcome.message[:MOST_TEXT], welcome.hint and welcome.hint[:MOST_TEXT]
            raise UnreachableError(f"host {self.name}: {what}", hint=hint)
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"it sent {type(welcome).__name__} instead of a Welcome")
        check_welcome(self.name, welcome)
        self._adopted = False
        self._begin(stream, welcome)
        self._ping(stream)
        began = time.monotonic()
        try:
            while True:
                due = max(self._last_pong, began) + self._lease + FENCE_SECONDS
                message = await stream.receive(max(0.1, min(self._silence_limit, due - time.monotonic())))
                if message is None:
                    return
                if not isinstance(message, Pong) and time.monotonic() > due:
                    raise asyncio.TimeoutError  # it sends messages but no Pong: its agent has fenced itself by now
                self.host.last_seen = time.time()
                self._take(stream, message)
        except asyncio.TimeoutError:
            self._way.kill_agent(stream)

    def _begin(self, stream: Stream, welcome: Welcome) -> None:
        """Begin with a new connection over which an agent has answered."""
        host = self.host
        self._sent, self._expected, self._pinged = set(), {}, False
        self._received = self._idle_events = self._idle_bytes = 0
        self._stream = stream
        if host.pid is None:
            self._last_pong = time.monotonic()
        if (host.pid, host.boot_id) == (welcome.pid, welcome.boot_id) and host.state in ("up", "reconnecting"):
            host.state = "up"  # as in the journal, so no record: a connection that keeps dropping must not fill it
            self._owner.changed()
        else:
            self._owner.record(AgentUp(self.name, welcome.pid, welcome.boot_id))

    def _take(self, stream: Stream, message: object) -> None:
        if isinstance(message, Event):
            if not self._owner.take_event(self.name, message, catching_up=self._catching_up):
                self._note_idle(stream)
            stream.send(Ack(message.seq))
        elif isinstance(message, Pong):
            if not self._pinged:
                raise ProtocolError("it sent a Pong that nobody asked for")
            self._pinged, self._ponged, self._failures = False, True, 0
            self._last_pong = time.monotonic()
            self._check_ends()
            asyncio.get_running_loop().call_later(self._interval, self._ping, stream)
        elif isinstance(message, Synced):
            if self._synced:
                raise ProtocolError("it sent a second Synced")
            self._synced, self._catching_up = True, False
            self.push()
            self._owner.synced(self.name)
        else:
            self._take_answer(message)
        self._received = stream.received

    def _take_answer(self, message: object) -> None:
        kind = type(message)
        if not self._expected.get(kind, 0):
            raise ProtocolError(f"it sent {kind.__name__}, which nobody asked for")
        self._expected[kind] -= 1
        if kind in self._questions:  # else it came too late
            question, check = self._questions[kind]
            check(message)
            if not question.done():
                question.set_result(message)

    def _note_idle(self, stream: Stream) -> None:
        """Count an event that said nothing new; raises ProtocolError for too many."""
        self._idle_events += 1
        self._idle_bytes += stream.received - self._received
        if self._idle_events > IDLE_EVENTS or self._idle_bytes > IDLE_BYTES:
            raise ProtocolError(f"it sent {self._idle_events} events that say nothing new")

    def _check_ends(self) -> None:
        """Raise ProtocolError if the end of a generation is overdue: without its report the run cannot end."""
        stops = {(c.mesh, c.generation): c for c in self._owner.commands_for(self.name) if isinstance(c, Stop)}
        self._ends = {which: due for which, due in self._ends.items() if which in stops}
        now = time.monotonic()
        for which, stop in stops.items():
            due = now + stop.grace + STOP_SECONDS
            self._ends[which] = min(due, self._ends.get(which, due))
            if now > self._ends[which]:
                raise ProtocolError(
                    f"it did not report the end of mesh {stop.mesh} within {stop.grace + STOP_SECONDS:g} s"
                )

    def _ping(self, stream: Stream) -> None:
        """Confirm its last Pong: the agent counts its lease from there, and so ends before we record it as lost."""
        if stream is self._stream:
            self._pinged = True
            stream.send(Ping())

    # ------------------------------------------------------------ commands

    def push(self, subjects: Collection[str] | None = None) -> None:
        """Send the commands that were not sent over this connection yet; `subjects` are those of `commands`."""
        if not self._owner.wants_back(self.name):
            self._over.set()
        if self._stream is None or not self._synced:
            return
        for command in self._owner.commands_for(self.name, subjects):
            if isinstance(command, Quit) and not self._owner.logs_fetched(self.name):
                continue  # `push` is called again once they are
            if key(command) not in self._sent:
                self._sent.add(key(command))
                self._quit_sent = self._quit_sent or isinstance(command, Quit)
                self._stream.send(command)

    async def ask(self, request: Any, kind: type[A], timeout: float, check: Check = _no_check) -> A | None:
        """The agent's answer, of type `kind`; None if it is not connected or does not answer within `timeout` seconds.

        `check` raises ProtocolError for an answer that our agent never gives: then the host is given up.
        """
        async with self._locks.setdefault(kind, asyncio.Lock()):
            if self._stream is None:
                return None
            question: asyncio.Future[A] = asyncio.get_running_loop().create_future()
            self._questions[kind] = question, check
            self._expected[kind] = self._expected.get(kind, 0) + 1
            self._stream.send(request)
            await asyncio.wait({question}, timeout=timeout)
            del self._questions[kind]
            if question.done() and not question.cancelled():
                return question.result()
            question.cancel()
            return None

    async def stats(self) -> Use:
        """Mesh → rank → its use now, for the ranks of this host; empty if the agent does not answer in time."""
        answer = await self.ask(GetStats(), Stats, STATS_SECONDS)
        return answer.meshes if answer else {}
