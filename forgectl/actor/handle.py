"""The handle that `as_actor` returns: it calls the ranks of a mesh."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from forgectl.actor.called_mesh import CalledMesh
from forgectl.actor.callers import this_caller
from forgectl.actor.endpoint import streams_only
from forgectl.actor.ends import Ends
from forgectl.actor.inflow import Inflow
from forgectl.actor.outflow import ENDED, Batch
from forgectl.actor.performer import call_ids, calling
from forgectl.actor.ranks import only
from forgectl.actor.shown import Shown
from forgectl.actor.stream import Stream
from forgectl.actor.value_mesh import ValueMesh
from forgectl.actor.verbs import INVOKE, LEAVE, NEXT, STREAM
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls

T = TypeVar("T")

GRACE = 10.0


class ActorHandle(Ends):
    """A mesh of actors, or a slice of one. `handle.ENDPOINT.call(…)` calls; see `Endpoint`.

    It can be passed to other actors as an argument, and they can call it. `with` and `async with` shut the mesh down at
    their end; a mesh whose handles are dropped goes on to the end of the script.
    """

    def __init__(self, mesh: CalledMesh, *, where: dict[str, Any] | None = None, timeout: float | None = None) -> None:
        self._mesh = mesh
        self._where = where or {}
        self._timeout = timeout

    def __getattr__(self, name: str) -> Endpoint:
        if name.startswith("__") or "_mesh" not in self.__dict__:
            raise AttributeError(name)
        if name not in self._mesh.interface.endpoints:
            raise AttributeError(self._mesh.interface.unknown(name))
        endpoint = self.__dict__[name] = Endpoint(self, name)  # the next access skips __getattr__
        return endpoint

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._mesh.interface.endpoints})

    def options(self, *, timeout: float | None = None) -> ActorHandle:
        """The same ranks with a timeout in seconds: a longer call raises TimeoutError, while the rank goes on."""
        return ActorHandle(self._mesh, where=self._where, timeout=timeout)

    def slice(self, **where: Any) -> ActorHandle:
        """Some of the ranks: `slice(procs=0)`, or `slice(procs=slice(2, 4))`. Raises ValueError if none is selected."""
        for dimension, chosen in where.items():
            if dimension != "procs":
                raise ValueError(f"mesh {self._mesh.name} has only the dimension 'procs', not {dimension!r}")
            if not self._ranks()[chosen] if isinstance(chosen, slice) else not -1 < chosen < len(self):
                raise ValueError(f"mesh {self._mesh.name} has no rank {chosen}; it has {len(self)}")
        if "procs" in self._where and where:
            where = {"procs": _composed(self._ranks(), where["procs"])}
        return ActorHandle(self._mesh, where={**self._where, **where}, timeout=self._timeout)

    def _ranks(self) -> range:
        every = range(self._mesh.procs)
        chosen = self._where.get("procs", slice(None))
        return every[chosen] if isinstance(chosen, slice) else range(chosen, chosen + 1)

    def __len__(self) -> int:
        return len(self._ranks())

    @property
    def size(self) -> int:
        """The number of ranks that it calls."""
        return len(self)

    @property
    def mesh_name(self) -> str:
        """The name of the mesh in `forgectl status`."""
        return self._mesh.name

    @property
    def adopted(self) -> bool:
        """Whether the driver was restarted, and these actors are those of the driver before it, with their state.

        False in every process but the driver.
        """
        return self._mesh.adopted

    def shutdown(self, grace: float = GRACE) -> Future[None]:
        """End the mesh: SIGTERM, and SIGKILL after `grace` seconds. Done when none of its processes is left.

        A second call does nothing. Works in every process that has the handle: the driver does it.
        """
        return Future.of(self._mesh.shutdown(grace), loop_of_calls(), f"{self._mesh.name}.shutdown")

    def __repr__(self) -> str:
        part = f"[{self._where['procs']}]" if "procs" in self._where else ""
        return f"<{self._mesh.interface.name} mesh {self._mesh.name}{part}, {len(self)} rank{'s' * (len(self) != 1)}>"

    def __reduce__(self) -> Any:
        return _from_parts, (self._mesh.foreign(), self._where, self._timeout)


def _all_of_it(values: list[Any]) -> Batch:
    return values, ENDED


def _unheard(ended: Future[Any]) -> None:
    if not ended.cancelled():
        ended.exception()


def _from_parts(mesh: CalledMesh, where: dict[str, Any], timeout: float | None) -> ActorHandle:
    return ActorHandle(mesh, where=where, timeout=timeout)


def _composed(ranks: range, chosen: Any) -> Any:
    """Translate an index or slice of `ranks` into one of the whole mesh."""
    if isinstance(chosen, slice):
        part = ranks[chosen]
        return slice(part.start, part.stop, part.step)
    return ranks[chosen]


class Endpoint(Shown):
    """One endpoint of the ranks of a handle.

    Every kind of call that has an answer raises what the endpoint raises (with the remote traceback as its cause),
    ActorDied if a rank of the mesh dies during the call, and TimeoutError if the handle has a timeout.
    Arguments are copied when the call is sent; the caller may change them afterwards.
    """

    def __init__(self, handle: ActorHandle, name: str) -> None:
        self._mesh = handle._mesh
        self._ranks = handle._ranks()
        self._timeout = handle._timeout
        self._streams = name in handle._mesh.interface.streaming
        super().__init__(handle._mesh.interface, name, f"{handle._mesh.name}.{name}")

    def _send(
        self, ranks: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any], finish: Callable[[list[Any]], T]
    ) -> Future[T]:
        if self._streams:
            return Future.failed(self._label, TypeError(streams_only(self._label, self.name)))
        request = INVOKE, self.name, args, kwargs, (*calling.get(), next(call_ids))
        return self._mesh.call(ranks, request, finish, label=self._label, timeout=self._timeout)

    def call(self, *args: Any, **kwargs: Any) -> Future[ValueMesh[Any]]:
        """Call every rank: a ValueMesh of their values, by rank."""
        return self._send(self._ranks, args, kwargs, ValueMesh)

    def call_one(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the only rank: its value. Raises ValueError if the handle has several: select one by `slice`."""
        if len(self._ranks) != 1:
            there = f"the handle has {len(self._ranks)}; use slice(procs=RANK)"
            return Future.failed(self._label, ValueError(f"{self._label}.call_one needs one rank, but {there}"))
        return self._send(self._ranks, args, kwargs, only)

    def choose(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call one rank, chosen at random: its value."""
        return self._send((random.choice(self._ranks),), args, kwargs, only)

    def broadcast(self, *args: Any, **kwargs: Any) -> None:
        """Call every rank without an answer: what the endpoint raises goes to the rank's log.

        The call is dropped while the mesh is not up. It blocks while too many calls wait for one of the ranks.
        """
        if self._streams:
            raise TypeError(streams_only(self._label, self.name))
        called = self._mesh.now()
        if called is not None and called.died is None:
            called.cast(self._ranks, (INVOKE, self.name, args, kwargs, (next(call_ids),)))

    def stream(self, *args: Any, **kwargs: Any) -> Stream[Any]:
        """Call every rank: `async for value in handle.endpoint.stream(…)`, or plain `for` where no event loop runs.

        Of an endpoint that yields, all values of all ranks as they come, those of one rank in their order; the handle's
        timeout is for each. Of another endpoint, the value that each rank returns.
        """
        if self._streams:
            return Stream(self._inflow(args, kwargs), self._timeout)
        calls = [functools.partial(self._send, (rank,), args, kwargs, _all_of_it) for rank in self._ranks]
        return Stream(Inflow.of_calls(self._label, calls))

    def _inflow(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, first_only: bool = False) -> Inflow:
        """Begin a stream. `first_only`: all ranks run the generator, but only rank 0's values count."""
        chain = (*calling.get(), next(call_ids))
        request = STREAM, self.name, args, kwargs, chain, this_caller(), first_only
        opened = self._mesh.call(self._ranks, request, only, label=self._label)

        def ask(rank: int) -> Future[Batch]:
            return self._mesh.call((rank,), (NEXT, chain[-1]), only, label=self._label)

        def leave() -> None:
            self._mesh.call(self._ranks, (LEAVE, chain[-1]), only, label=self._label)._then(_unheard)

        asks = [] if opened.done() else [functools.partial(ask, rank) for rank in self._ranks]
        return Inflow(self._label, asks, opened, leave, first_only=first_only)

    def _reject(self, verb: str) -> NoReturn:
        raise NotImplementedError(f"{self._mesh.name} is an actor, not a service: use call, call_one or choose")

    def route(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only services have it: raises NotImplementedError."""
        self._reject("route")

    def fanout(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only services have it: raises NotImplementedError."""
        self._reject("fanout")

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self.name} is an endpoint of a mesh: use {self.name}.call(…), call_one, choose or broadcast")
