"""Calls the ranks of one generation of a mesh, and keeps the calls that wait for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from forgectl.actor.deaths import fresh_copy
from forgectl.actor.remote_errors import RemoteError, original
from forgectl.errors import ActorDied, UnreachableError
from forgectl.messages import pickling
from forgectl.messages.calling import Call, Here, LostError, exchange
from forgectl.messages.frames import ERROR, Address, socket_name


def addresses(mesh: str, generation: int, places: Sequence[str]) -> list[Address]:
    """The address of each rank of a generation, from each rank's place."""
    return [Address(place, socket_name(mesh, generation, rank)) for rank, place in enumerate(places)]


class Ranks:
    """The ranks of one generation of a mesh. Any event loop may call them."""

    def __init__(self, mesh: str, generation: int, places: Sequence[str], here: Here) -> None:
        self.mesh = mesh
        self.generation = generation
        self.places = tuple(places)
        self._here = here
        self._addresses = addresses(mesh, generation, places)
        self._why: ActorDied | None = None
        self._calls: set[Call] = set()

    @property
    def died(self) -> ActorDied | None:
        """Why this generation ended; None while it lives."""
        return self._why

    async def call(self, ranks: Sequence[int], request: Any, timeout: float | None = None) -> list[Any]:
        """Send a request to some ranks; returns their answers in the order of `ranks`.

        Raises the exception of the first rank that raises (with the remote traceback as its cause), ActorDied as soon
        as an agent reports a death, UnreachableError if a connection is lost, TimeoutError after `timeout` seconds.
        """
        self._check_alive()
        messages = exchange(self._here)
        call = messages.call([self._addresses[r] for r in ranks], request, _value_or_raise)
        self._calls.add(call)
        try:
            self._check_alive()  # another thread may have called `die` since the first check
            if timeout is None:
                return await call.future
            return await asyncio.wait_for(call.future, timeout)
        except LostError as e:
            raise UnreachableError(f"mesh {self.mesh}: {e}") from None
        finally:
            self._calls.discard(call)
            if call.unanswered:
                messages.forget(call)

    def cast(self, ranks: Sequence[int], request: Any) -> None:
        """Send a request that gets no answer. From any thread, in an event loop or not."""
        exchange(self._here).cast([self._addresses[r] for r in ranks], request, lambda: self._why is not None)

    def _check_alive(self) -> None:
        if self._why is not None:
            raise fresh_copy(self._why)

    def die(self, why: ActorDied) -> None:
        """Fail all running calls, and refuse later ones. From any thread."""
        if self._why is None:
            self._why = why
            for call in list(self._calls):
                call.cut(fresh_copy(why))
            exchange(self._here).drop(self._addresses)


def _value_or_raise(kind: int, body: Sequence[Any]) -> Any:
    """Decode the answer of a rank: return its value, or raise its error."""
    value = pickling.loads(body)
    if kind != ERROR:
        return value
    if not isinstance(value, RemoteError):
        raise RuntimeError(f"a rank answered with an error of type {type(value).__name__}")
    error, remote = original(value)
    error.__cause__ = remote
    raise error
