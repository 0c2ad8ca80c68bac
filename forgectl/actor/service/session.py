"""Sessions: calls that stick to one replica of a service. Which one a context is in, and where each lives."""

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
# Keyed by weak reference: an id() may be given again to a later service, while a task still has the older context.
_current: ContextVar[Sessions] = ContextVar("forgectl_sessions")
_NONE: Sessions = {}


class HasSessions(Protocol):
    """What a `Session` needs of its service."""

    def start_session(self) -> str: ...
    def terminate_session(self, session: str) -> None: ...


def current_session(service: object) -> str | None:
    """The session of this very service object that the current context is in, if any."""
    return _current.get(_NONE).get(weakref.ref(service))


class Session:
    """`async with Session(service) as session_id`: calls inside, and in tasks started inside, stick to one replica.

    Ends the session on leaving. Sessions of one service nest: the inner one holds until it is left.
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
            pass  # left in another context than entered, as fixtures of some test runners do: there is nothing to undo
        try:
            self._service.terminate_session(session)
        except ForgeError:
            pass  # terminated by hand, which is as good


class SessionTable:
    """Session id → index of its replica; None until its first call."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._homes: dict[str, int | None] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._homes

    def start(self) -> str:
        """A new session's id."""
        session = os.urandom(16).hex()
        self._homes[session] = None
        return session

    def terminate(self, session: str) -> None:
        """Forget it. Raises NotFoundError for one that is not known."""
        self.check(session)
        del self._homes[session]

    def check(self, session: str) -> None:
        """Raises NotFoundError for a session that is not known."""
        if session not in self._homes:
            raise NotFoundError(
                f"service {self._service}: unknown session {session!r}; it may have been terminated",
                hint="call within `async with service.session()`, or pass an id from `start_session()`",
            )

    def home(self, session: str) -> int | None:
        """The index of its replica, healthy or not."""
        return self._homes.get(session)

    def move(self, session: str, index: int) -> None:
        """It lives there from now on, unless it was terminated meanwhile."""
        if session in self._homes:
            self._homes[session] = index

    def count(self) -> Counter[int | None]:
        """How many sessions live on each replica."""
        return Counter(self._homes.values())

    def __len__(self) -> int:
        return len(self._homes)
