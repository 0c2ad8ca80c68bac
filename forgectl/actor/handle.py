"""The handle that `as_actor` returns: it calls the ranks of a mesh."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

from forgectl.actor.called_mesh import CalledMesh
from forgectl.actor.performer import calling
from forgectl.actor.value_mesh import ValueMesh
from forgectl.actor.verbs import INVOKE

GRACE = 10.0


class ActorHandle:
    """A mesh of actors, or a slice of one. `handle.ENDPOINT.call(…)` calls; see `Endpoint`.

    It can be passed to other actors as an argument, and they can call it.
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
    def size(self) -> dict[str, int]:
        """Dimension → number of ranks along it."""
        return {"procs": len(self)}

    @property
    def mesh_name(self) -> str:
        """The name of the mesh in `forgectl status`."""
        return self._mesh.name

    async def shutdown(self, grace: float = GRACE) -> None:
        """End the mesh: SIGTERM, then SIGKILL after `grace` seconds. Returns when no process is left.

        A second call does nothing.
        """
        await self._mesh.shutdown(grace)

    def __repr__(self) -> str:
        part = f"[{self._where['procs']}]" if "procs" in self._where else ""
        return f"<{self._mesh.interface.name} mesh {self._mesh.name}{part}, {len(self)} ranks>"

    def __reduce__(self) -> Any:
        return _from_parts, (self._mesh.foreign(), self._where, self._timeout)


def _from_parts(mesh: CalledMesh, where: dict[str, Any], timeout: float | None) -> ActorHandle:
    return ActorHandle(mesh, where=where, timeout=timeout)


def _composed(ranks: range, chosen: Any) -> Any:
    """Translate an index or slice of `ranks` into one of the whole mesh."""
    if isinstance(chosen, slice):
        part = ranks[chosen]
        return slice(part.start, part.stop, part.step)
    return ranks[chosen]


class Endpoint:
    """One endpoint of the ranks of a handle.

    Every kind of call that has an answer raises what the endpoint raises (with the remote traceback as its cause),
    ActorDied if a rank of the mesh dies during the call, and TimeoutError if the handle has a timeout.
    Arguments are copied when the call is sent; the caller may change them afterwards.
    """

    def __init__(self, handle: ActorHandle, name: str) -> None:
        self._mesh = handle._mesh
        self._ranks = handle._ranks()
        self._timeout = handle._timeout
        self.name = name

    async def _send(self, ranks: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        called = self._mesh.now() or await self._mesh.ranks()
        return await called.call(ranks, (INVOKE, self.name, args, kwargs, calling.get()), self._timeout)

    async def call(self, *args: Any, **kwargs: Any) -> ValueMesh[Any]:
        """Call every rank; returns a ValueMesh of their values, by rank."""
        return ValueMesh(await self._send(self._ranks, args, kwargs))

    async def call_one(self, *args: Any, **kwargs: Any) -> Any:
        """Call the only rank; returns its value. Raises ValueError if the handle has several: select one by `slice`."""
        if len(self._ranks) != 1:
            name, count = f"{self._mesh.name}.{self.name}", len(self._ranks)
            raise ValueError(f"{name}.call_one needs one rank, but the handle has {count}; use slice(procs=RANK)")
        return (await self._send(self._ranks, args, kwargs))[0]

    async def choose(self, *args: Any, **kwargs: Any) -> Any:
        """Call one rank, chosen at random; returns its value."""
        return (await self._send((random.choice(self._ranks),), args, kwargs))[0]

    def broadcast(self, *args: Any, **kwargs: Any) -> None:
        """Call every rank without an answer: what the endpoint raises goes to the rank's log.

        The call is dropped while the mesh is not up. It blocks while too many calls wait for one of the ranks.
        """
        called = self._mesh.now()
        if called is not None and called.died is None:
            called.cast(self._ranks, (INVOKE, self.name, args, kwargs, ()))

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Call every rank: `async for value in handle.endpoint.stream(…)` yields the values as they arrive."""
        called = self._mesh.now() or await self._mesh.ranks()
        request = (INVOKE, self.name, args, kwargs, calling.get())
        pending = [asyncio.ensure_future(called.call((rank,), request, self._timeout)) for rank in self._ranks]
        try:
            for answer in asyncio.as_completed(pending):
                yield (await answer)[0]
        finally:
            for task in pending:
                task.cancel()

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
