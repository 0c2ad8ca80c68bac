"""Asks the run's driver, from any other process that has a handle, for what only the driver does.

Only it launches and ends meshes, and only it knows the load of a service's replicas. It listens like a rank (`DESK`).
Each request has a number, by which this process gives it up when its caller is cancelled. While requests are under way,
this process sends a sign of life that lists them, so that the driver notices if it ends in any way, or if a report of
it was lost with a connection.

While the driver is being restarted, requests wait for the next one. Those that were under way are sent again, except a
call that the driver was passing on: nobody knows whether it ran.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from forgectl.actor.called_mesh import Called
from forgectl.actor.deaths import died, is_over
from forgectl.actor.follower import NEWS_SECONDS, follower
from forgectl.actor.making import Launch
from forgectl.actor.membership import here_of
from forgectl.actor.origin import Origin
from forgectl.actor.ranks import Ranks, only
from forgectl.actor.verbs import ALIVE, CANCEL, DESK, KEEP, LAUNCH, ROUTE
from forgectl.errors import ActorDied, UnreachableError
from forgectl.messages.calling import Here
from forgectl.model.status import OVER
from forgectl.names import DRIVER
from forgectl.protocol.supervision import MeshNews
from forgectl.system.futures import Future

BEAT_SECONDS = 2.0
"""Between two signs of life; `driver/desk.py` says after how many missed ones this process counts as ended."""


class Grant(NamedTuple):
    """The generation of a replica's mesh in which this process has a slot."""

    mesh: str
    generation: int
    places: tuple[str, ...]


class Driver:
    """The driver of a run, as another process asks it. Get it by `driver()`."""

    def __init__(self, origin: Origin) -> None:
        """Raises UnreachableError where handles of the run cannot be used."""
        self._here, agent = here_of(origin)
        self._me = os.urandom(8).hex()
        self._desk = _Desk(self._here, self._repeat)
        self._restarts = origin.driver_may_restart
        self._launches = itertools.count(1)
        self._launched: dict[str, tuple[Any, ...]] = {}  # by claim: what later drivers are to adopt
        self._latest = 0  # number of a request
        self._lock = threading.Lock()
        self._under_way: set[int] = set()
        self._busy = threading.Event()
        self._replicas: dict[str, Ranks] = {}
        self._news = follower(origin.run, agent)
        self._news.watch(DRIVER, self._desk.take)
        try:
            self._news.synced.result(NEWS_SECONDS)
        except concurrent.futures.TimeoutError:
            raise UnreachableError(f"run {origin.run}: the agent of this host does not answer") from None
        if not self._news.knows(DRIVER):
            self._desk.begin(0)
        threading.Thread(target=self._beat, name="forgectl-errands", daemon=True).start()

    async def ask(self, label: str, verb: str, *rest: Any) -> Any:
        """What the driver answers; raises what it raises. If the caller is cancelled, the driver gives it up."""
        with Errand(self, label) as errand:
            return await errand.ask(verb, *rest)

    async def launch(self, name: str, named: bool, verb: str, *what: Any) -> Any:
        """The handle of what the driver launches, or has launched before it was restarted."""
        launch = Launch(named, name if named else f"{self._me}/{next(self._launches)}")
        handle = await self.ask(f"the launch of {name}", verb, launch, *what)
        if self._restarts:
            self._launched[launch.claim] = (verb, launch._replace(is_over=True), *what)
            if verb == LAUNCH:
                first = handle._mesh.foreign().first
                self._news.watch(handle.mesh_name, functools.partial(self._forget_ended, launch.claim, first))
        return handle

    def _forget_ended(self, claim: str, first: int, now: MeshNews) -> None:
        if now.state in OVER and now.generation >= first:  # not an earlier mesh of the same name
            self._launched.pop(claim, None)

    def _repeat(self, ranks: Ranks) -> None:
        """Have a new driver adopt what this process had launched by those before."""
        for claim, what in list(self._launched.items()):
            number = self._begin()
            answer = ranks.ask((0,), (KEEP, self._me, number, *what), only, f"the launch {claim}")
            answer._then(functools.partial(self._kept, number, claim))

    def _kept(self, number: int, claim: str, answer: Future[bool]) -> None:
        if answer.exception() is None and not answer.result():
            self._launched.pop(claim, None)
        self._end(number)

    def replica(self, grant: Grant) -> Ranks | None:
        """The ranks of the generation that was granted; None if that has ended already."""
        with self._lock:
            ranks = self._replicas.get(grant.mesh)
            known = ranks is not None and ranks.generation >= grant.generation
            if not known:
                ranks = self._replicas[grant.mesh] = Ranks(grant.mesh, grant.generation, grant.places, self._here)
        assert ranks is not None
        if not known:
            self._news.watch(grant.mesh, functools.partial(_follow, ranks))
        return ranks if ranks.generation == grant.generation and ranks.died is None else None

    def _begin(self) -> int:
        with self._lock:
            self._latest += 1
            self._under_way.add(self._latest)
            self._busy.set()
            return self._latest

    def _end(self, number: int) -> None:
        with self._lock:
            self._under_way.discard(number)
            if not self._under_way:
                self._busy.clear()

    def _beat(self) -> None:
        while not self._desk.is_over:
            self._busy.wait()
            time.sleep(BEAT_SECONDS)
            with self._lock:
                latest, under_way = self._latest, list(self._under_way)
            if under_way:
                self._tell(ALIVE, 0, latest, under_way)

    def _tell(self, verb: str, number: int, *rest: Any) -> None:
        if (ranks := self._desk.now()) is not None and ranks.died is None:
            ranks.cast((0,), (verb, self._me, number, *rest))


class Errand:
    """One request of this process, until it is left: the driver then gives up what it still does for it."""

    def __init__(self, of: Driver, label: str) -> None:
        self._driver = of
        self._label = label
        self._number = 0

    def __enter__(self) -> Errand:
        self._number = self._driver._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver._end(self._number)
        if error is not None and not isinstance(error, Exception):  # cancelled
            self.tell(CANCEL)

    async def ask(self, verb: str, *rest: Any) -> Any:
        """What the driver answers; raises what it raises, or ActorDied if the run has ended.

        If the driver is restarted meanwhile, the next one is asked, except for ROUTE: that raises ActorDied.
        """
        request = (verb, self._driver._me, self._number, *rest)
        while True:
            ranks = await self._driver._desk.up()
            try:
                return await ranks.ask((0,), request, only, self._label)
            except ActorDied:
                if ranks.died is None or verb == ROUTE:
                    raise

    def tell(self, verb: str, *rest: Any) -> None:
        """The same without an answer."""
        self._driver._tell(verb, self._number, *rest)


class _Desk(Called):
    """Where the driver listens, a generation of it after another; a run without a launch has only the first."""

    def __init__(self, here: Here, came_up: Callable[[Ranks], None]) -> None:
        super().__init__(DRIVER)
        self._here = here
        self._notify = came_up

    @property
    def is_over(self) -> bool:
        """Whether no driver will answer any more."""
        return self._why_over is not None

    async def up(self) -> Ranks:
        """The driver that runs, or that comes next."""
        return self.now() or await self.ranks()

    def take(self, now: MeshNews) -> None:
        """Apply news of the driver. Called by the follower."""
        ranks = self._ranks
        if ranks is not None and (now.generation != ranks.generation or now.state not in ("running", "stopping")):
            self._ranks = None
            ranks.die(died(now))
        if now.state in OVER:
            self._is_over(ActorDied(f"the driver does not answer: {now.reason or 'it has ended'}"))
        elif now.state == "running" and self._ranks is None:
            self.begin(now.generation)

    def begin(self, generation: int) -> None:
        """A driver runs; it may not listen yet."""
        ranks = Ranks(DESK, generation, ("",), self._here)
        ranks.unbound()  # requests that wait for replicas must not hold up the reports that free these
        self._came_up(ranks)
        self._notify(ranks)


def _follow(ranks: Ranks, now: MeshNews) -> None:
    """End the calls of a replica's generation when that has ended."""
    if is_over(ranks.generation, now):
        ranks.die(died(now))


_drivers: dict[tuple[int, str], Driver] = {}
_lock = threading.Lock()


def driver(origin: Origin) -> Driver:
    """The driver of a handle's run; raises UnreachableError where handles of the run cannot be used."""
    key = os.getpid(), origin.run
    with _lock:
        if key not in _drivers:
            _drivers[key] = Driver(origin)
        return _drivers[key]


def _begin_anew() -> None:
    """In a forked child: a lock that another thread of its parent holds is not its own."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _drivers.clear()


os.register_at_fork(after_in_child=_begin_anew)
