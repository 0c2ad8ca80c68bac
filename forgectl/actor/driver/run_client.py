"""The run that this process drives: its state as the controller reports it, and what it asks of the controller.

One thread reads the controller's reports, another is the event loop that meshes and services live in: the user's code
may run loops of its own, one after the other, or none.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from forgectl.actor.origin import Origin, find_launched_by
from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.controller.start_run import begin_run
from forgectl.errors import BusyError, ForgeError, UsageError
from forgectl.model.plan import LEASE, LOG_LIMIT, HostPlan, Plan, Unit
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.names import free_name, name_of
from forgectl.protocol.control import AddMesh, Attach, MeshAdded, Report, Shutdown, StatusReport
from forgectl.rank import driver
from forgectl.redaction import of_process
from forgectl.system.processes import boot_id
from forgectl.wire.envelope import Refusal
from forgectl.wire.unix_sockets import private_folder

if TYPE_CHECKING:
    from forgectl.messages.calling import Here

T = TypeVar("T")

END_SECONDS = 20.0
"""How long the end of a script waits for the end of its run."""
END_GRACE = 10.0
"""Seconds that ranks have to end in, once their driver has."""


class RunClient:
    """The run of this process. Get it by `home()`."""

    def __init__(self, run: RunDir, plan: Plan, *, own: bool) -> None:
        self.run = run
        self.plan = plan
        self.ended = False
        self.connections = 0  # how often a controller was found: what was said to the one before may be lost
        self._pid = os.getpid()
        self._own = own
        self._closing = False
        self._reachable: concurrent.futures.Future[None] | None = None
        self._latest: dict[str, MeshStatus] = {}
        self._places = {h.name: h.place for h in plan.hosts}
        self._watchers: dict[str, Callable[[MeshStatus], None]] = {}
        self._firsts: dict[str, int] = {}  # mesh → its first generation, where an ended one had its name before
        self.meshes: dict[str, Any] = {}  # those launched here, by name
        self.services: dict[str, Any] = {}
        self._unclaimed = {name for d in plan.declared for name in d.meshes}
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="forgectl", daemon=True).start()
        self._follower = threading.Thread(target=self._follow, name="forgectl-follow", daemon=True)
        self._follower.start()

    @property
    def is_of_a_parent(self) -> bool:
        """Whether this process was forked since: threads and connections stayed behind."""
        return os.getpid() != self._pid

    # ------------------------------------------------------------ the loop

    async def in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` in the loop of meshes and services, from any other; when cancelled, until it has cleaned up."""
        theirs = asyncio.get_running_loop()
        if theirs is self.loop:
            return await work
        answer: asyncio.Future[T] = theirs.create_future()
        ended = asyncio.Event()
        tasks: list[asyncio.Task[T]] = []

        def settle() -> None:
            ended.set()
            _hand_over(tasks[0], answer)

        def over(_: asyncio.Task[T]) -> None:
            with contextlib.suppress(RuntimeError):  # their loop is closed: nobody waits any more
                theirs.call_soon_threadsafe(settle)

        def begin() -> None:
            tasks.append(self.loop.create_task(work))
            tasks[0].add_done_callback(over)

        self.loop.call_soon_threadsafe(begin)
        try:
            return await answer
        except asyncio.CancelledError:
            if not ended.is_set():
                self.loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                await ended.wait()
            raise

    # ------------------------------------------------------------ messages

    @functools.cached_property
    def here(self) -> Here:
        """How this process takes part in the run's messages; raises OSError where its folder cannot be had."""
        from forgectl.messages.calling import Here

        private_folder(self.run.messages.parent)
        return Here(str(private_folder(self.run.messages)), "", self._pid)

    @functools.cached_property
    def origin(self) -> Origin:
        """What a handle tells other processes of this run."""
        number = next(i for i, host in enumerate(self.plan.hosts) if host.local)
        return Origin(self.run.run, boot_id(), self.here.folder, str(self.run.agent_socket(number)))

    def place_of(self, host: str) -> str:
        """The place (`frames.Address`) of a host of the run."""
        return self._places[host]

    # ------------------------------------------------------------ its door

    def keep_reachable(self, work: Coroutine[Any, Any, None]) -> None:
        """Have `work` look after the socket where this process is asked, until the run begins to end.

        Whose sockets its controller then removes: nobody would clean up after another one.
        """
        self._reachable = asyncio.run_coroutine_threadsafe(work, self.loop)

    def _let_go(self) -> None:
        if self._reachable is not None:
            self._reachable.cancel()

    # ------------------------------------------------------------ what the controller reports

    def _follow(self) -> None:
        while not self._closing:
            try:
                line = client.connect(self.run)
                if line is None:
                    break
                with contextlib.closing(line):
                    line.send(Attach())
                    self.connections += 1
                    while (report := line.receive()) is not None:
                        if isinstance(report, StatusReport):
                            self.loop.call_soon_threadsafe(self._take, report.run)
            except (ForgeError, OSError):
                if not self.run.path.exists():
                    break
        final = self.run.read_final()
        self.loop.call_soon_threadsafe(self._take_last, final)

    def _take(self, status: RunStatus) -> None:
        if status.state not in ("starting", "running"):
            self._let_go()
        for mesh in status.meshes:
            if mesh.generation >= self._firsts.get(mesh.mesh, 0):
                self._tell(mesh)

    def _take_last(self, final: RunStatus | None) -> None:
        """The run has ended; None: without a trace."""
        self._let_go()
        meshes = final.meshes if final is not None else ()
        for mesh in meshes:
            self._tell(mesh)
        self.ended = True
        for name, watcher in list(self._watchers.items()):
            if all(mesh.mesh != name for mesh in meshes):
                watcher(MeshStatus.lost(name, "its run has ended"))

    def _tell(self, mesh: MeshStatus) -> None:
        self._latest[mesh.mesh] = mesh
        if (watcher := self._watchers.get(mesh.mesh)) is not None:
            watcher(mesh)

    def watch(self, mesh: str, watcher: Callable[[MeshStatus], None]) -> None:
        """Have `watcher` called with every later state of a mesh, and with the present one. In the loop."""
        self._watchers[mesh] = watcher
        latest = self._latest.get(mesh)
        if latest is not None and (self.ended or latest.generation >= self._firsts.get(mesh, 0)):
            watcher(latest)

    def forget(self, mesh: str, watcher: Callable[[MeshStatus], None]) -> None:
        """Call `watcher` no more: the mesh is over."""
        if self._watchers.get(mesh) == watcher:
            del self._watchers[mesh]
            self._latest.pop(mesh, None)

    # ------------------------------------------------------------ what is asked of the controller

    async def obtain(self, unit: Unit, *, named: bool) -> str:
        """The name of a mesh for this unit: one that the spec declares, else a new one; raises ForgeError."""
        if unit.mesh in self._unclaimed:
            self._unclaimed.discard(unit.mesh)
            return unit.mesh
        answer = await asyncio.to_thread(self._ask, AddMesh(unit, named))
        if isinstance(answer, Refusal):
            raise answer.error()
        if not isinstance(answer, MeshAdded):
            raise ForgeError(f"run {self.run.run} has ended; no mesh can be added to it")
        self._firsts[answer.mesh] = answer.generation
        return answer.mesh

    def service_name(self, name: str, *, named: bool) -> str:
        """A name that no living service has; raises BusyError for one that was chosen and is taken."""
        if named and name in self.services:
            hint = "choose another mesh_name, or shut that one down"
            raise BusyError(f"there is a service {name} already", hint=hint)
        return free_name(name, self.services)

    async def report(self, report: Report) -> None:
        """Tell what became of a generation's actors, without secrets."""
        redact = of_process()
        error = redact(report.error) if report.error else None
        await self._say(Report(report.mesh, report.generation, error, redact(report.traceback)))

    async def stop(self, mesh: str, grace: float) -> None:
        """Have a mesh end: SIGTERM, `grace` seconds, SIGKILL."""
        await self._say(Shutdown((mesh,), grace, "its driver"))

    async def _say(self, request: Any) -> None:
        ask = functools.partial(self._ask, request, answer=False)
        try:
            asking = asyncio.get_running_loop().run_in_executor(None, ask)
        except RuntimeError:  # the interpreter is ending and takes no more work for threads: the run ends with it
            return
        await asking

    def _ask(self, request: Any, *, answer: bool = True) -> Any:
        line = client.connect(self.run)
        if line is None:
            return None
        with contextlib.closing(line):
            if answer:
                return client.ask(self.run, line, request)
            with contextlib.suppress(OSError):
                line.send(request)
                line.socket.shutdown(1)  # all is said: wait until it was read
                line.receive(client.ANSWER_SECONDS)
            return None

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """At the end of the process: end a run of one's own, and wait until nothing is left of it.

        In a run's driver: have its meshes end.
        """
        if self.is_of_a_parent or self._closing:
            return
        self._closing = True
        self._let_go()
        if not self._own:
            with contextlib.suppress(ForgeError, OSError):
                self._ask(Shutdown(tuple(self.meshes), END_GRACE, "the end of its driver"), answer=False)
            return
        with contextlib.suppress(ForgeError, OSError):
            self._ask(Shutdown(None, 5.0, "the end of its script"), answer=False)
        self._follower.join(END_SECONDS)
        if (final := self.run.read_final()) is not None:
            client.wait_gone(final)


def _hand_over(task: asyncio.Task[T], answer: asyncio.Future[T]) -> None:
    """Give what a task came to to whoever awaits it in another loop, if that still does."""
    error = None if task.cancelled() else task.exception()  # seen, whether or not anybody awaits it
    if answer.done():
        return
    if task.cancelled():
        answer.cancel()
    elif error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


_home: RunClient | None = None
_lock = threading.Lock()


def run_client(coming: Unit | None = None, meanwhile: Callable[[], None] = lambda: None) -> RunClient:
    """The run that this process drives; begun now where there is none, for the mesh `coming`. Raises ForgeError.

    `meanwhile` is called while the processes of a run that is begun start.
    """
    global _home
    with _lock:
        if _home is None or _home.is_of_a_parent:
            _home = _find_or_begin(coming, meanwhile)
            find_launched_by(_launched)
            atexit.register(_home.close)
        return _home


def living_run_client() -> RunClient | None:
    """That of the run that this process drives, if it does already."""
    return _home if _home is not None and not _home.is_of_a_parent else None


def _launched(run: str, mesh: str) -> Any:
    ours = living_run_client()
    return ours.meshes.get(mesh) if ours is not None and ours.run.run == run else None


def _find_or_begin(coming: Unit | None, meanwhile: Callable[[], None]) -> RunClient:
    if (run_dir := driver.run_dir()) is not None:
        run, own = RunDir.existing(Path(run_dir)), False
    elif "FORGE_RUN_DIR" in os.environ:
        raise UsageError(
            "actors are launched by the driver of a run, not by other actors",
            hint="launch it in the driver, and hand its handle to this actor",
        )
    else:
        plan = _own_plan()
        run = begin_run(plan, b"", name_is_given=False, own=True, coming=coming, meanwhile=meanwhile)
        own = True
    from forgectl.actor.driver.call_server import CallServer  # not before: time counts until the run has begun

    found = RunClient(run, run.read_plan(), own=own)
    found.keep_reachable(CallServer(found).keep())
    return found


def _own_plan() -> Plan:
    """A run without meshes on this machine, named after the script."""
    name = name_of(Path(sys.argv[0] or "python").stem, "python")
    host = HostPlan("local", True, sys.executable, "127.0.0.1", cores=len(os.sched_getaffinity(0)))
    return Plan(name, "", str(Path.cwd()), LEASE, LOG_LIMIT, (host,), (), open=True)
