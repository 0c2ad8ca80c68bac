"""The run that this process drives: the state that the controller reports, and requests to the controller.

One thread reads the controller's reports. Another thread runs the event loop of meshes and services, because the
user's code may run several loops, one after the other, or none.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from forgectl.actor.driver.service_record import ServiceRecords
from forgectl.actor.making import Launch
from forgectl.actor.origin import Origin, set_launched_lookup
from forgectl.actor.surroundings import Moment
from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.controller.start_run import begin_run
from forgectl.errors import BusyError, ForgeError, UsageError
from forgectl.model.plan import LEASE, LOG_LIMIT, HostPlan, Plan, Unit
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.names import DRIVER, free_name, name_of
from forgectl.protocol.control import (
    BY_HANDLE,
    AddMesh,
    Attach,
    CallTimedOut,
    MeshAdded,
    Report,
    Shutdown,
    StatusReport,
)
from forgectl.rank import driver
from forgectl.redaction import of_process
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls
from forgectl.system.processes import boot_id
from forgectl.wire.envelope import Refusal
from forgectl.wire.unix_sockets import private_folder

if TYPE_CHECKING:
    from forgectl.actor.driver.rank_output import RankOutput
    from forgectl.messages.calling import Here

T = TypeVar("T")

END_SECONDS = 20.0
"""Seconds that a script waits at its end for the end of its run."""
END_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for ranks whose driver has ended."""


class RunClient:
    """The run of this process. `run_client()` returns the one object of a process."""

    def __init__(self, run: RunDir, plan: Plan, *, began: Moment | None) -> None:
        own = began is not None
        self.run = run
        self.plan = plan
        self.began = began  # this process when it began the run; None if that was a launch
        self.ended = False
        self.connections = 0  # to controllers so far; reports sent over an earlier one may be lost
        self._pid = os.getpid()
        self._own = own
        self._closing = False
        self._serving: concurrent.futures.Future[None] | None = None
        self._latest: dict[str, MeshStatus] = {}
        self._places = {h.name: h.place for h in plan.hosts}
        self._watchers: dict[str, Callable[[MeshStatus], None]] = {}
        self._first_generations: dict[str, int] = {}  # by mesh; above 0 if an ended mesh had the same name before
        self.meshes: dict[str, Any] = {}  # LiveMesh by name: those that this process launched
        self.services: dict[str, Any] = {}  # LiveService by name
        self.keyed_services: dict[str, Any] = {}  # the same by key
        self.desk: Any = None  # the Desk, from the first launch on
        self.generation = 0 if own else int(os.environ.get("FORGE_GENERATION", "0"))  # of this driver
        self.may_restart = not own and plan.mesh(DRIVER).restart.max > 0
        self.records = ServiceRecords(run.services_folder if self.may_restart else None)
        self.inherited = {r.key: asyncio.Event() for r in self.records.earlier.values()}  # set once they are here
        self._declared = {name for d in plan.declared for name in d.meshes}
        self._unclaimed = set(self._declared) if self.generation == 0 else set()
        self._synced: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="forgectl", daemon=True).start()
        self._output = _output() if own else None  # in the driver of a launch, the launch shows it
        self._follower = threading.Thread(target=self._follow, name="forgectl-follow", daemon=True)
        self._follower.start()

    @property
    def belongs_to_parent(self) -> bool:
        """Whether a parent process created this object: its threads and connections are not in this process."""
        return os.getpid() != self._pid

    # ------------------------------------------------------------ the loop

    def in_loop(self, work: Coroutine[Any, Any, T], label: str) -> Future[T]:
        """Run `work` in the loop of meshes and services, from any thread; `label` names it in messages."""
        return Future.of(work, self.loop, label)

    # ------------------------------------------------------------ messages

    @functools.cached_property
    def here(self) -> Here:
        """How this process takes part in the run's messages; raises OSError if it cannot create their folder."""
        from forgectl.messages.calling import Here

        private_folder(self.run.messages.parent)
        return Here(str(private_folder(self.run.messages)), "", self._pid)

    @functools.cached_property
    def origin(self) -> Origin:
        """The origin that handles of this process carry."""
        number = next(i for i, host in enumerate(self.plan.hosts) if host.local)
        agent = str(self.run.agent_socket(number))
        return Origin(self.run.run, boot_id(), self.here.folder, agent, self.may_restart)

    def place_of(self, host: str) -> str:
        """The place (`frames.Address`) of a host of the run."""
        return self._places[host]

    # ------------------------------------------------------------ its socket for the CLI

    def serve(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which serves this process's socket, until the run begins to end.

        The controller removes the run's sockets then; nobody would remove one that is created later.
        """
        self._serving = asyncio.run_coroutine_threadsafe(work, self.loop)

    def _stop_serving(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    # ------------------------------------------------------------ what the controller reports

    def _follow(self) -> None:
        while not self._closing:
            try:
                connection = client.connect(self.run)
                if connection is None:
                    break
                with contextlib.closing(connection):
                    connection.send(Attach())
                    self.connections += 1
                    while (report := connection.receive()) is not None:
                        if isinstance(report, StatusReport):
                            self.loop.call_soon_threadsafe(self._take, report.run)
            except (ForgeError, OSError):
                if not self.run.path.exists():
                    break
        final = self.run.read_final()
        self.loop.call_soon_threadsafe(self._take_last, final)

    def _take(self, status: RunStatus) -> None:
        if status.state not in ("starting", "running"):
            self._stop_serving()
        for mesh in status.meshes:
            if mesh.generation >= self._first_generations.get(mesh.mesh, 0):
                self._notify(mesh)
        self._are_synced()

    def _are_synced(self) -> None:
        if not self._synced.done():
            self._synced.set_result(None)

    def _take_last(self, final: RunStatus | None) -> None:
        """Apply the state in which the run ended; None if the run left none."""
        self._stop_serving()
        meshes = final.meshes if final is not None else ()
        for mesh in meshes:
            self._notify(mesh)
        self.ended = True
        self._are_synced()
        for name, watcher in list(self._watchers.items()):
            if all(mesh.mesh != name for mesh in meshes):
                watcher(MeshStatus.lost(name, "its run has ended"))

    def _notify(self, mesh: MeshStatus) -> None:
        self._latest[mesh.mesh] = mesh
        if (watcher := self._watchers.get(mesh.mesh)) is not None:
            watcher(mesh)

    def show_output(self, mesh: MeshStatus) -> None:
        """Show on stderr what the present ranks of a mesh print, unless something else shows it."""
        if self._output is not None:
            self._output.take(mesh)

    def watch(self, mesh: str, watcher: Callable[[MeshStatus], None]) -> None:
        """Call `watcher` with the present state of a mesh, if known, and with every later one. In the loop."""
        self._watchers[mesh] = watcher
        latest = self._latest.get(mesh)
        if latest is not None and (self.ended or latest.generation >= self._first_generations.get(mesh, 0)):
            watcher(latest)

    def forget(self, mesh: str, watcher: Callable[[MeshStatus], None]) -> None:
        """Stop calling `watcher`, because the mesh has ended."""
        if self._watchers.get(mesh) == watcher:
            del self._watchers[mesh]
            self._latest.pop(mesh, None)

    # ------------------------------------------------------------ requests to the controller

    async def obtain(self, unit: Unit, asked: Launch, *, may_be_declared: bool) -> str:
        """Get a mesh for a unit, and return its name: one that the spec declares, one to adopt or a new one.

        Raises ForgeError.
        """
        if may_be_declared and unit.mesh in self._unclaimed:
            self._unclaimed.discard(unit.mesh)
            return unit.mesh
        if may_be_declared and unit.mesh in self._declared:  # a later driver asks for it, as it may have ended
            unit = self.plan.mesh(unit.mesh).unit
        if self.generation:
            await self._until_stopped(unit.mesh)
        request = AddMesh(unit, asked.named, asked.claim, asked.terms, self.generation, asked.is_over)
        answer = await asyncio.to_thread(self._ask, request)
        if isinstance(answer, Refusal):
            raise answer.error()
        if not isinstance(answer, MeshAdded):
            raise ForgeError(f"run {self.run.run} has ended; no mesh can be added to it")
        self._first_generations[answer.mesh] = answer.generation
        return answer.mesh

    async def end_orphan(self, mesh: str, generation: int, grace: float) -> None:
        """End a mesh that an earlier driver launched, and wait for that; it may have ended."""
        await self._know()
        latest = self._latest.get(mesh)
        if latest is not None and not latest.ended and latest.generation >= generation and mesh not in self._watchers:
            await self.stop(mesh, grace)
            await self._until_ended(mesh)

    async def _until_stopped(self, mesh: str) -> None:
        """Wait for the end of a mesh that an earlier driver was ending: this launch is for a new one."""
        await self._know()
        if mesh not in self._watchers and mesh in self._latest and self._latest[mesh].state == "stopping":
            await self._until_ended(mesh)

    async def _until_ended(self, mesh: str) -> None:
        gone = asyncio.Event()

        def look(now: MeshStatus) -> None:
            if now.ended:
                gone.set()

        self.watch(mesh, look)
        try:
            await gone.wait()
        finally:
            self.forget(mesh, look)

    async def _know(self) -> None:
        """Wait until the controller has reported the state of the run."""
        await asyncio.wrap_future(self._synced)

    async def living_replicas(self, service: str) -> tuple[list[int], int]:
        """The indexes of replicas that an earlier driver launched and that live, and the first one that none had."""
        if not self.generation:
            return [], 0
        await self._know()
        pattern = re.compile(rf"{re.escape(service)}\.([0-9]+)")
        found = {int(match[1]): self._latest[name] for name in self._latest if (match := pattern.fullmatch(name))}
        living = sorted(i for i, m in found.items() if m.kind == "service" and not m.ended and m.state != "stopping")
        return living, max(living and found, default=-1) + 1

    def launched(self, mesh: str, generation: int) -> Any:
        """The mesh of that name which had that generation; None if only an earlier one did, which has ended."""
        return self.meshes.get(mesh) if generation >= self._first_generations.get(mesh, 0) else None

    def service_name(self, name: str, *, named: bool) -> str:
        """A name that no living service has. If the user chose it (`named`) and it is taken, raises BusyError."""
        if named and name in self.services:
            hint = "choose another mesh_name, or shut that one down"
            raise BusyError(f"there is a service {name} already", hint=hint)
        return free_name(name, {*self.services, *(record.name for record in self.records.earlier.values())})

    async def report(self, report: Report) -> None:
        """Report to the controller whether a generation's actors were set up; secrets are redacted."""
        redact = of_process()
        error = redact(report.error) if report.error else None
        await self._send(Report(report.mesh, report.generation, error, redact(report.traceback)))

    async def send_late(self, mesh: str, generation: int, what: str) -> None:
        """Report that a call had no answer in time, so that the stacks of the mesh are saved."""
        await self._send(CallTimedOut(mesh, generation, what))

    async def stop(self, mesh: str, grace: float) -> None:
        """Ask the controller to end a mesh: SIGTERM, then SIGKILL after `grace` seconds."""
        await self._send(Shutdown((mesh,), grace, BY_HANDLE))

    async def _send(self, request: Any) -> None:
        ask = functools.partial(self._ask, request, answer=False)
        try:
            asking = asyncio.get_running_loop().run_in_executor(None, ask)
        except RuntimeError:  # the interpreter ends and starts no more threads; the run ends too
            return
        await asking

    def _ask(self, request: Any, *, answer: bool = True) -> Any:
        connection = client.connect(self.run)
        if connection is None:
            return None
        with contextlib.closing(connection):
            if answer:
                return client.ask(self.run, connection, request)
            with contextlib.suppress(OSError):
                connection.send(request)
                connection.socket.shutdown(1)  # nothing more to send; wait until the controller has read it
                connection.receive(client.ANSWER_SECONDS)
            return None

    # ------------------------------------------------------------ the end

    async def end_all(self, grace: float) -> None:
        """Shut down every service and mesh that was launched here; in the loop."""
        await asyncio.gather(*(service.close(grace) for service in list(self.services.values())))
        await asyncio.gather(*(mesh.shutdown(grace) for mesh in list(self.meshes.values())))

    def close(self, by: str = "the end of its script") -> None:
        """Clean up at the end of the process.

        If this process began the run, end the run and wait until nothing of it is left. Of a launch, the controller
        ends the run, or restarts the driver.
        """
        if self.belongs_to_parent or self._closing:
            return
        self._closing = True
        self._stop_serving()
        if not self._own:
            return
        with contextlib.suppress(ForgeError, OSError):
            self._ask(Shutdown(None, 5.0, by), answer=False)
        self._follower.join(END_SECONDS)
        if self._output is not None:
            self.loop.call_soon_threadsafe(self._output.end)  # after the reports that wait there
            self._output.join()
        if (final := self.run.read_final()) is not None:
            client.wait_gone(final)


_run_client: RunClient | None = None
_lock = threading.Lock()


def run_client(coming: Unit | None = None, meanwhile: Callable[[], None] = lambda: None) -> RunClient:
    """The run that this process drives. If there is none, begins one for the mesh `coming`. Raises ForgeError.

    `meanwhile` is called while the processes of a new run start.
    """
    global _run_client  # noqa: PLW0603  # one per process
    with _lock:
        if _run_client is None or _run_client.belongs_to_parent:
            _run_client = _find_or_begin(coming, meanwhile)
            set_launched_lookup(_launched)
            atexit.register(_run_client.close)
        return _run_client


def living_run_client() -> RunClient | None:
    """The RunClient of this process if it drives a run already, else None."""
    return _run_client if _run_client is not None and not _run_client.belongs_to_parent else None


def shutdown(grace: float = END_GRACE) -> Future[None]:
    """End every mesh and service that this script launched, and the script's run; the next launch begins a new run.

    In the driver of a spec the run goes on. Does nothing where nothing was launched.
    """
    return Future.of(_shutdown(grace), loop_of_calls(), "forgectl.shutdown")


async def _shutdown(grace: float) -> None:
    global _run_client  # noqa: PLW0603
    if (ending := living_run_client()) is None:
        return
    await ending.in_loop(ending.end_all(grace), "forgectl.shutdown")
    if ending._own:
        with _lock:
            _run_client = None if _run_client is ending else _run_client
        await asyncio.to_thread(ending.close, BY_HANDLE)
        atexit.unregister(ending.close)


def _launched(run: str, name: str) -> Any:
    ours = living_run_client()
    if ours is None or ours.run.run != run:
        return None
    return ours.meshes.get(name) or ours.keyed_services.get(name)


def _find_or_begin(coming: Unit | None, meanwhile: Callable[[], None]) -> RunClient:
    if (run_dir := driver.run_dir()) is not None:
        run, began = RunDir.existing(Path(run_dir)), None
    elif "FORGE_RUN_DIR" in os.environ:
        raise UsageError(
            "actors are launched by the driver of a run and by its actors, not by its scripts and other processes",
            hint="launch it in the driver, and pass its handle to this process",
        )
    else:
        plan, began = _own_plan(), Moment.now()
        run = begin_run(plan, b"", name_is_given=False, own=True, coming=coming, meanwhile=meanwhile)
    from forgectl.actor.driver.call_server import CallServer  # late: an import before `begin_run` would delay the run

    found = RunClient(run, run.read_plan(), began=began)
    found.serve(CallServer(found).keep())
    return found


def _output() -> RankOutput | None:
    from forgectl.actor.driver import rank_output  # late, for the same reason

    return rank_output.RankOutput() if rank_output.wanted() else None


def _own_plan() -> Plan:
    """The plan of a run without meshes on this machine, named after the script."""
    name = name_of(Path(sys.argv[0] or "python").stem, "python")
    host = HostPlan("local", True, sys.executable, "127.0.0.1", cores=len(os.sched_getaffinity(0)))
    return Plan(name, "", str(Path.cwd()), LEASE, LOG_LIMIT, (host,), (), open=True)
