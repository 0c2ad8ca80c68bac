"""A mesh that this process launched: follows its generations, and fills each with actors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cloudpickle

from forgectl.actor import places
from forgectl.actor.endpoint import endpoints_of, interface_of
from forgectl.actor.handle import ActorHandle
from forgectl.actor.home import Document, Home
from forgectl.actor.mesh import again, died
from forgectl.actor.raised import RemoteTraceback
from forgectl.errors import ActorDied, ForgeError, error_of
from forgectl.frozen import dataclass
from forgectl.processes import boot_id
from forgectl.protocol import OVER, Report

if TYPE_CHECKING:
    from forgectl.actor.client import Client
    from forgectl.actor.engine import Spawned
    from forgectl.actor.foreign_mesh import ForeignMesh
    from forgectl.actor.shells import Shells

LONGEST_BACKOFF = 10.0


@dataclass(frozen=True)
class Making:
    """What each generation is made of: the constructor's arguments, and what the ranks are asked as."""

    cls: type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    procs: int
    backoff: bool = False  # wait longer before each further restart


class LiveMesh:
    """One mesh, from its first generation to its end. Lives in the home's loop; may be called from any."""

    def __init__(self, home: Home, name: str, making: Making) -> None:
        self.name = name
        self.cls = making.cls
        self.interface = interface_of(making.cls)
        self.procs = making.procs
        self._home = home
        self._making = making
        self._attempted = -1  # the generation that was last filled, or tried to be
        self._reported: tuple[int, int] | None = None  # (generation, connection) that was told to be set up
        self._shells: Shells | None = None
        self._spawning: Shells | None = None
        self._error: BaseException | None = None  # what a constructor or setup raised
        self._client: Client | None = None
        self._up: concurrent.futures.Future[Shells] = concurrent.futures.Future()
        self._over: concurrent.futures.Future[Document] = concurrent.futures.Future()
        self._spawned: dict[int, Spawned] = {}
        self._listeners: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------ what callers see

    def now(self) -> Shells | None:
        """The shells of the generation that is up."""
        return self._shells

    def foreign(self, shells: Shells | None = None) -> ForeignMesh:
        """The generation that is up, as other processes may have it; raises ActorDied where none is."""
        shells = shells or self._shells
        if shells is None:
            raise ActorDied(f"mesh {self.name} is not up: its handle cannot be handed on", mesh=self.name)
        from forgectl.actor.foreign_mesh import ForeignMesh

        where = (boot_id(), str(self._home.run.path))
        return ForeignMesh(self.name, self.interface, self.procs, where, shells.generation, shells.monarchs)

    async def shells(self) -> Shells:
        """The shells of the generation that is up, or coming up; raises why there will be none."""
        if self._shells is not None:
            return self._shells
        coming = asyncio.wrap_future(self._up)
        coming.add_done_callback(lambda f: f.cancelled() or f.exception())  # also when nobody waits any more
        try:
            return await asyncio.shield(coming)
        except ActorDied as e:
            raise again(e) from None

    @property
    def healthy(self) -> bool:
        """Whether it can be called now."""
        return self._shells is not None

    @property
    def ended(self) -> BaseException | None:
        """Why it will never be up again; None while it may."""
        return self._up.exception() if self._over.done() and self._up.done() else None

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in the home's loop, when `healthy` or `ended` has changed."""
        self._listeners.append(listener)

    async def shutdown(self, grace: float = 10.0) -> None:
        """End it; returns when no process of it is left. Again, or after its end: nothing."""
        if not self._over.done():
            await self._home.stop(self.name, grace)
            await asyncio.shield(asyncio.wrap_future(self._over))

    # ------------------------------------------------------------ what happens to it

    @classmethod
    def begun(cls, home: Home, name: str, making: Making) -> LiveMesh:
        """One that follows its mesh from now on. In the home's loop."""
        mesh = home.meshes[name] = cls(home, name, making)
        home.watch(name, mesh._take)
        return mesh

    def _take(self, document: Document) -> None:
        state, generation = document["state"], document["generation"]
        alive = state in ("pending", "starting", "ready")
        for shells in (self._shells, self._spawning):
            if shells is not None and (not alive or generation != shells.generation):
                self._lose(shells, document)
        if state in OVER:
            self._end(document)
        elif document["open"] and generation > self._attempted:
            self._attempted = generation
            self._soon(self._fill(document))
        elif state == "starting" and self._shells is not None and generation == self._shells.generation:
            self._soon(self._tell(generation))  # a new controller may not have heard

    def _lose(self, shells: Shells, document: Document) -> None:
        was_up = shells is self._shells
        if was_up:  # first: who is told of the death may call again at once, and is to wait for what comes
            self._shells = None
            self._up = concurrent.futures.Future()
        shells.die(died(document, mesh=self.name))
        if self._client is not None:
            self._client.tell_of_end(shells.generation, document)
        if spawned := self._spawned.pop(shells.generation, None):
            self._soon(spawned.drop())
        if was_up:
            self._tell_listeners()

    def _end(self, document: Document) -> None:
        if self._over.done():
            return
        self._home.forget(self.name, self._take)
        self._over.set_result(document)
        if self._up.done():
            self._up = concurrent.futures.Future()
        self._up.set_exception(self._error or _refused(document) or died(document, mesh=self.name))
        self._tell_listeners()

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    def _soon(self, work: Any) -> None:
        self._tasks.add(task := asyncio.get_running_loop().create_task(work))
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ a generation

    async def _fill(self, document: Document) -> None:
        """Spawn the ranks of a generation, construct an actor in each, set them up, and say so."""
        generation, restarts = document["generation"], document["restarts"]
        if self._making.backoff and restarts > 1:
            await asyncio.sleep(min(0.1 * 2**restarts, LONGEST_BACKOFF))
        client = self._client = await self._home.client()
        home = self._home
        try:
            starts = places.starts(home.run, home.plan, home.crossing.hosts, document)
        except ForgeError as e:
            await self._cannot(generation, e)
            return
        spawned, shells = client.spawn(
            self.name,
            generation,
            self.procs,
            lambda rank: starts[rank].arguments,
            self._give_up,
            [start.worker for start in starts],
        )
        self._spawning = shells
        self._spawned[generation] = spawned
        try:
            await self._make(shells, client)
        except ActorDied as e:
            if shells.died is None:  # only Monarch says so
                await self._cannot(generation, e)
            return  # its state tells why
        except Exception as e:
            await self._cannot(generation, e)
            return
        finally:
            self._spawning = None
        self._shells = shells
        self._up.set_result(shells)
        self._tell_listeners()
        await self._tell(generation)

    async def _cannot(self, generation: int, error: Exception) -> None:
        self._error = error
        remote = str(error.__cause__).strip() if error.__cause__ else ""
        text = remote or "".join(traceback.format_exception(error))
        what = f"its constructor or setup raised {_one_line(error)}"
        await self._home.report(Report(self.name, generation, what, text))

    async def _make(self, shells: Shells, client: Client) -> None:
        making = self._making
        payload = cloudpickle.dumps((making.cls, making.args, making.kwargs))
        handle = ActorHandle(self.foreign(shells))
        path, errors = _import_path(), client.errors
        try:
            await shells.call(lambda s, n: s.construct.call(path, self.name, handle, payload, errors, n))
        except ValueError as e:
            if isinstance(e.__cause__, RemoteTraceback):
                raise
            raise await shells.cause(str(e)) from None  # a process of it could not be started
        if "setup" in endpoints_of(making.cls):
            await shells.call(lambda s, n: s.invoke.call("setup", (), {}, (), n))

    def _give_up(self, monarchs_word: str) -> None:
        """Monarch cannot reach what the agents see running: it counts as failed. From any loop."""
        text = monarchs_word.strip().splitlines() or ["it does not say why"]
        report = Report(self.name, self._attempted, f"Monarch has lost it: {text[0]}", monarchs_word)
        asyncio.run_coroutine_threadsafe(self._home.report(report), self._home.loop)

    async def _tell(self, generation: int) -> None:
        key = (generation, self._home.connections)
        if self._reported != key:
            self._reported = key
            await self._home.report(Report(self.name, generation))


def _import_path() -> list[str]:
    """Where this process finds modules, for ranks to find them too."""
    return [os.path.abspath(p) for p in sys.path if p != ""] + [os.getcwd()] * ("" in sys.path)  # noqa: PTH100, PTH109


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _refused(document: Document) -> ForgeError | None:
    """What kept it from starting, where that was not the user's code."""
    error = document["error"]
    if not error or error["code"] == 1:
        return None
    return error_of(error["code"], f"mesh {document['mesh']}: {error['message']}", error["hint"])
