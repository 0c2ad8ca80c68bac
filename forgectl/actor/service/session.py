"""Sessions: calls that go to one replica of a service. The session of a context, and the replica of each session."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol

from forgectl.errors import ForgeError, NotFoundError

MOST_IDLE = 2**16
"""Ids of the user's own that are remembered although none of their calls is under way."""
STARTED = "session-"
"""How the ids of `start_session` begin: such an id that is not known was terminated."""

Sessions = Mapping["weakref.ref[Any]", str]
# Keys are weak references: a later service may reuse an id() while a task still has the older context.
_current: ContextVar[Sessions] = ContextVar("forgectl_sessions")
_NONE: Sessions = {}


class HasSessions(Protocol):
    """What a `Session` needs of its service."""

    async def start_session(self) -> str: ...
    async def terminate_session(self, session: str) -> None: ...


def current_session(service: object) -> str | None:
    """The session of this service object in the current context, else None."""
    return _current.get(_NONE).get(weakref.ref(service))


class Session:
    """`async with Session(service) as session_id`: calls inside, and in tasks started inside, go to one replica.

    Leaving the block ends the session, unless its id is the user's own: others may use that. Sessions of one service
    can be nested: the innermost counts.
    """

    def __init__(self, service: HasSessions, session: str | None = None) -> None:
        self._service = service
        self._own = session
        self._entered: list[tuple[str, Token[Sessions]]] = []

    async def __aenter__(self) -> str:
        session = self._own if self._own is not None else await self._service.start_session()
        token = _current.set({**_current.get(_NONE), weakref.ref(self._service): session})
        self._entered.append((session, token))
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, token = self._entered.pop()
        try:
            _current.reset(token)
        except ValueError:
            pass  # the block was left in another context, as in fixtures of some test runners; nothing to undo there
        if self._own is None:
            with contextlib.suppress(ForgeError):  # the user has terminated it already, or the service has ended
                await self._service.terminate_session(session)


class SessionTable:
    """Session id → index of the session's replica; None until its first call. From any thread.

    An id of the user's own begins with its first call. Of those without calls under way, the `most_idle` that were used
    last are remembered; an older one begins anew when it is used again. Ids of `start` last until they are terminated.
    """

    def __init__(
        self,
        service: str,
        most_idle: int = MOST_IDLE,
        known: Mapping[str, int | None] = {},
        note: Callable[[str, int | None], object] = lambda session, index: None,
        note_end: Callable[[str], object] = lambda session: None,
    ) -> None:
        """`known`: sessions to begin with.

        `note` is called with each session that began or has another replica, `note_end` with each that is forgotten.
        """
        self._service = service
        self._most_idle = most_idle
        self._replicas: dict[str, int | None] = dict(known)
        self._calls: dict[str, int] = {}  # of the user's own ids: calls under way
        self._idle: OrderedDict[str, None] = OrderedDict.fromkeys(s for s in known if not s.startswith(STARTED))
        """The user's own ids without calls, the latest last."""
        self._note = note
        self._note_end = note_end
        self._lock = threading.Lock()

    def __contains__(self, session: str) -> bool:
        return session in self._replicas

    def start(self) -> str:
        """Start a session and return its id."""
        session = STARTED + os.urandom(16).hex()
        with self._lock:
            self._replicas[session] = None
            self._note(session, None)
        return session

    def terminate(self, session: str) -> None:
        """Forget a session. Raises NotFoundError if it is unknown."""
        with self._lock:
            self._check(session)
            del self._replicas[session]
            self._idle.pop(session, None)
            self._note_end(session)

    @contextlib.contextmanager
    def use(self, session: str) -> Iterator[None]:
        """A call of the session is under way; begins one whose id is the user's own.

        Raises NotFoundError for an id of `start` that was terminated.
        """
        with self._lock:
            if session.startswith(STARTED):
                self._check(session)
            else:
                self._replicas.setdefault(session, None)
                self._idle.pop(session, None)
                self._calls[session] = self._calls.get(session, 0) + 1
        try:
            yield
        finally:
            if not session.startswith(STARTED):
                with self._lock:
                    self._leave(session)

    def _leave(self, session: str) -> None:
        self._calls[session] -= 1
        if self._calls[session]:
            return
        del self._calls[session]
        if session in self._replicas:  # not terminated meanwhile
            self._idle[session] = None
        while len(self._idle) > self._most_idle:
            oldest, _ = self._idle.popitem(last=False)
            del self._replicas[oldest]
            self._note_end(oldest)

    def _check(self, session: str) -> None:
        if session not in self._replicas:
            raise NotFoundError(
                f"service {self._service}: unknown session {session!r}; it may have been terminated",
                hint="call within `async with service.session()`, or pass an id from `start_session()`, or your own",
            )

    def replica_of(self, session: str) -> int | None:
        """The index of the session's replica, healthy or not; None before its first call."""
        return self._replicas.get(session)

    def move(self, session: str, index: int) -> None:
        """Move a session to another replica, unless it has been terminated."""
        with self._lock:
            if session in self._replicas:
                self._replicas[session] = index
                self._note(session, index)

    def count(self) -> Counter[int | None]:
        """The number of sessions on each replica."""
        with self._lock:
            return Counter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)
