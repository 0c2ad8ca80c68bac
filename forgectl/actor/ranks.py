"""Calls the ranks of one generation of a mesh, and keeps the calls that wait for an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from forgectl.actor.deaths import fresh_copy
from forgectl.actor.remote_errors import RemoteError, original
from forgectl.errors import ActorDied
from forgectl.messages import pickling
from forgectl.messages.call import Call
from forgectl.messages.calling import Here, exchange
from forgectl.messages.frames import ERROR, Address, socket_name

R = TypeVar("R")


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
        self._calls: set[Call[Any]] = set()

    @property
    def died(self) -> ActorDied | None:
        """Why this generation ended; None while it lives."""
        return self._why

    def unbound(self) -> None:
        """Send calls at once, however many are under way: some are answered only after later ones were received."""
        for address in self._addresses:
            exchange(self._here).unbound(address)

    def send(self, call: Call[Any], ranks: Sequence[int], frames: list[Any]) -> None:
        """Send pickled frames to some ranks; from any thread. What goes wrong is what `call` fails with."""
        call.on_end = self._calls.discard
        self._calls.add(call)
        try:
            self._check_alive()
            exchange(self._here).call(call, [self._addresses[r] for r in ranks], frames)
            self._check_alive()  # another thread may have called `die` since the first check
        except Exception as e:
            call.fail(e)
        if call.done():
            self._calls.discard(call)

    async def call(self, ranks: Sequence[int], request: Any) -> list[Any]:
        """Send a request to some ranks; returns their answers in the order of `ranks`, or raises what one raises."""
        return await self.ask(ranks, request, list[Any], f"mesh {self.mesh}")

    def ask(self, ranks: Sequence[int], request: Any, finish: Callable[[list[Any]], R], label: str) -> Call[R]:
        """Send a request to some ranks; `finish` makes a value of their answers. Raises what pickling raises."""
        call = new_call(label, len(ranks), finish)
        self.send(call, ranks, pickling.dumps(request))
        return call

    def cast(self, ranks: Sequence[int], request: Any) -> None:
        """Send a request that gets no answer. From any thread, in an event loop or not."""
        addresses = [self._addresses[r] for r in ranks]
        exchange(self._here).cast(addresses, pickling.dumps(request), lambda: self._why is not None)

    def _check_alive(self) -> None:
        if self._why is not None:
            raise fresh_copy(self._why)

    def die(self, why: ActorDied) -> None:
        """Fail all running calls, and refuse later ones. From any thread."""
        if self._why is None:
            self._why = why
            for call in list(self._calls):
                call.fail(fresh_copy(why))
            exchange(self._here).drop(self._addresses)


def only(values: list[Any]) -> Any:
    """The answer of the first rank, which may be the only one."""
    return values[0]


def new_call(label: str, count: int, finish: Callable[[list[Any]], R]) -> Call[R]:
    """A call of so many ranks, yet to be sent; `finish` makes its value of their answers."""
    return Call(label, count, _value_or_raise, finish)


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
