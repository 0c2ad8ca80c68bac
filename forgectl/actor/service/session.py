"""Sessions: calls that go to one replica of a service. The session of a context, and the replica of each session."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol

from forgectl.errors import ForgeError, NotFoundError

Sessions = Mapping["weakref.ref[Any]", str]
# Keys are weak references: a later service may reuse an id() while a task still has the older context.
_current: ContextVar[Sessions] = ContextVar("forgectl_sessions")
_NONE: Sessions = {}


class HasSessions(Protocol):
    """What a `Session` needs of its service."""

    def start_session(self) -> str: ...
    def terminate_session(self, session: str) -> None: ...


def current_session(service: object) -> str | None:
    """The session of this service object in the current context, else None."""
    return _current.get(_NONE).get(weakref.ref(service))


class Session:
    """`async with Session(service) as session_id`: calls inside, and in tasks started inside, go to one replica.

    Leaving the block ends the session. Sessions of one service can be nested: the innermost counts.
    """

    def __init__(self, service: HasSessions) -> None:
        self._service = service
        self._entered: list[tuple[str, Token[Sessions]]] = []

    async def __aenter__(self) -> str:
        session = self._service.start_session()
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
        try:
            self._service.terminate_session(session)
        except ForgeError:
            pass  # the user has terminated it already


class SessionTable:
    """Session id → index of the session's replica; None until its first call."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._replicas: dict[str, int | None] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._replicas

    def start(self) -> str:
        """Start a session and return its id."""
        session = os.urandom(16).hex()
        self._replicas[session] = None
        return session

    def terminate(self, session: str) -> None:
        """Forget a session. Raises NotFoundError if it is unknown."""
        self.check(session)
        del self._replicas[session]

    def check(self, session: str) -> None:
        """Raises NotFoundError for an unknown session."""
        if session not in self._replicas:
            raise NotFoundError(
                f"service {self._service}: unknown session {session!r}; it may have been terminated",
                hint="call within `async with service.session()`, or pass an id from `start_session()`",
            )

    def replica_of(self, session: str) -> int | None:
        """The index of the session's replica, healthy or not; None before its first call."""
        return self._replicas.get(session)

    def move(self, session: str, index: int) -> None:
        """Move a session to another replica, unless it has been terminated."""
        if session in self._replicas:
            self._replicas[session] = index

    def count(self) -> Counter[int | None]:
        """The number of sessions on each replica."""
        return Counter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)
