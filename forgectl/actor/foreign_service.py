"""A service as used by a process other than its driver.

The driver chooses a replica for each request and grants a slot of it (queueing, sessions, metrics, and repetition after
a death stay in one place). This process then calls the replica's ranks itself and reports the end, so arguments and
results do not pass through the driver. Calls of an endpoint that gathers batches do pass through it: a batch has calls
of several processes.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any, NoReturn

from forgectl.actor.called_service import CalledService, ServiceForm
from forgectl.actor.errands import Driver, Errand, Grant, driver
from forgectl.actor.origin import Origin
from forgectl.actor.performer import call_ids, calling
from forgectl.actor.ranks import Ranks, only
from forgectl.actor.service.batching import checked
from forgectl.actor.value_mesh import ValueMesh
from forgectl.actor.verbs import BEGIN, CLOSE, ENDED, INVOKE, LEND, PART, PARTS, ROUTE, SCALE, TERMINATE
from forgectl.errors import ActorDied, ForgeError
from forgectl.messages import pickling
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls

Called = tuple[str, tuple[Any, ...], dict[str, Any]]
"""An endpoint with its arguments."""


class ForeignService(CalledService):
    """A service of another process, found by its key."""

    def __init__(self, key: str, form: ServiceForm, origin: Origin) -> None:
        super().__init__(form)
        self._key = key
        self._origin = origin

    def __reduce__(self) -> Any:
        return _restore, (self._key, self.form, self._origin)

    def foreign(self) -> ForeignService:
        """Itself: it is in that form already."""
        return self

    # ------------------------------------------------------------ calls

    def route(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Future[Any]:
        """Call one replica; arguments are pickled once it has its slot."""
        batched = endpoint in self.form.batched
        routed = (self._gathered if batched else self._routed)(endpoint, args, kwargs, session)
        return Future.of(routed, loop_of_calls(), self.form.label(endpoint))

    async def _routed(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Any:
        with Errand(self._driver(), self.form.label(endpoint)) as errand:
            ask = LEND, self._key, endpoint, session
            return await self._run(errand, 0, ask, await errand.ask(*ask), (endpoint, args, kwargs))

    async def _gathered(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Any:
        pickled = [pickling.nested(a) for a in args], {name: pickling.nested(a) for name, a in kwargs.items()}
        return await self._ask(endpoint, ROUTE, endpoint, *pickled, session)

    def fanout(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[list[Any]]:
        """Call each healthy replica; if calls raise, the first exception once all are done."""
        return Future.of(self._fanned(endpoint, args, kwargs), loop_of_calls(), self.form.label(endpoint))

    async def _fanned(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if endpoint in self.form.batched:
            args, kwargs = tuple([arg] for arg in args), {name: [arg] for name, arg in kwargs.items()}
        with Errand(self._driver(), self.form.label(endpoint)) as errand:
            parts = await errand.ask(PARTS, self._key, endpoint)
            calls = (self._part(errand, part, (endpoint, args, kwargs)) for part in parts)
            results = await asyncio.gather(*calls, return_exceptions=True)
        values: list[Any] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            values += result
        return values

    async def _part(self, errand: Errand, part: int, call: Called) -> list[Any]:
        """The value of one replica; nothing if it was scaled away meanwhile."""
        ask = PART, part, self._key, call[0]
        grant = await errand.ask(*ask)
        if grant is None:
            return []
        value = await self._run(errand, part, ask, grant, call)
        return [checked(call[0], value, 1)[0] if call[0] in self.form.batched else value]

    async def _run(self, errand: Errand, part: int, ask: tuple[Any, ...], grant: Grant | None, call: Called) -> Any:
        """Call the replica, and after a death another one where the driver grants that; report the end.

        `ask` is what the grant was asked for by: a driver that was restarted meanwhile does not know the grant.
        """
        while True:
            if grant is None:
                raise ActorDied(f"{self.form.label(call[0])}: its replica died before the request was sent")
            ranks = self._driver().replica(grant)
            if ranks is None:
                grant = await errand.ask(ENDED, part, "unsent") or await errand.ask(*ask)
                continue
            try:
                value = await self._call(ranks, *call)
            except Exception as error:
                if not (isinstance(error, ActorDied) and error.mesh in (None, grant.mesh)):
                    errand.tell(ENDED, part, "raised")
                    raise
                again = await errand.ask(ENDED, part, "died", error)
                if again is None:
                    raise
                grant = again
                continue
            errand.tell(ENDED, part, "answered")
            return value

    async def _call(self, ranks: Ranks, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call of a replica's ranks."""
        every = range(len(ranks.places))
        finish = only if self.form.first_rank else ValueMesh
        request = INVOKE, endpoint, args, kwargs, (*calling.get(), next(call_ids))
        return await ranks.ask(every, request, finish, self.form.label(endpoint))

    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> NoReturn:
        """Raises NotImplementedError: a grant lasts for one call, not as long as a stream."""
        raise NotImplementedError(
            f"{self.form.label(endpoint)}: a service streams only to the driver; in other processes stream from the "
            "handle of an actor, or let the driver iterate and pass the values on"
        )

    # ------------------------------------------------------------ what the driver does

    async def start_session(self) -> str:
        """Start a session and return its id."""
        session: str = await self._ask("start_session", BEGIN)
        return session

    async def terminate_session(self, session: str) -> None:
        """End a session; raises NotFoundError if it is unknown."""
        await self._ask("terminate_session", TERMINATE, session)

    async def scale(self, replicas: int) -> None:
        """Change the number of replicas."""
        await self._ask("scale", SCALE, replicas)

    def metrics(self) -> dict[str, Any]:
        """Raises ForgeError: it does not wait, and only the driver has the numbers."""
        raise ForgeError(
            f"the metrics of service {self.form.name} are in the driver of its run",
            hint="call metrics() there, or see `forgectl status --json`",
        )

    def shutdown(self, timeout: float) -> Future[None]:
        """End the service."""
        return Future.of(self._ask("shutdown", CLOSE, timeout), loop_of_calls(), self.form.label("shutdown"))

    async def _ask(self, what: str, verb: str, *rest: Any) -> Any:
        return await self._driver().ask(self.form.label(what), verb, self._key, *rest)

    def _driver(self) -> Driver:
        return driver(self._origin)


_known: weakref.WeakValueDictionary[tuple[int, str, str], ForeignService] = weakref.WeakValueDictionary()


def _restore(key: str, form: ServiceForm, origin: Origin) -> CalledService:
    """The LiveService if this process routes the service; else one ForeignService, so that its sessions are shared."""
    if (live := origin.launched_here(key)) is not None:
        found: CalledService = live
        return found
    return _known.setdefault((os.getpid(), origin.run, key), ForeignService(key, form, origin))
