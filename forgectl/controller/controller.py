"""The controller: receives events and requests, writes them to the journal, and sends agents the commands."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any

from forgectl.controller import journal
from forgectl.controller.additions import Additions
from forgectl.controller.agent_link import AgentLink, Use, note
from forgectl.controller.changes import Changes
from forgectl.controller.commands import Command, commands, last_commands
from forgectl.controller.configs import agent_config
from forgectl.controller.control_socket import ControlServer
from forgectl.controller.events import Events
from forgectl.controller.hangs import describe_hang, describe_late, incident_of
from forgectl.controller.hooks import Hooks
from forgectl.controller.host_claims import check_event, check_gpus, own_stacks, own_use, unsound
from forgectl.controller.incidents import Incidents
from forgectl.controller.log_fetcher import LogFetcher
from forgectl.controller.message_keys import MessageKeys
from forgectl.controller.prune import begin_pruning
from forgectl.controller.records import (
    Adopted,
    AgentLost,
    AgentUp,
    Born,
    Diagnosed,
    Happened,
    Moved,
    Record,
    RestartAsked,
    StopAsked,
    Stranded,
    TimeUp,
    Waited,
)
from forgectl.controller.run_dir import AgentPlace, RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.state import FAILURE_GRACE, HostState, MeshState
from forgectl.controller.status_document import run_document
from forgectl.errors import ForgeError, NotOursError
from forgectl.model.event import RunEvent
from forgectl.model.plan import Gpu, HostPlan, Plan
from forgectl.model.status import RunStatus
from forgectl.plan.placement import gpus_needed
from forgectl.plan.shares import share_of
from forgectl.plan.spares import standing_in
from forgectl.protocol.control import AddMesh, CallTimedOut, HostStacks, MeshAdded, Report, ShowStacks
from forgectl.protocol.supervision import (
    AgentConfig,
    Event,
    GetGpus,
    GetStacks,
    HostGpus,
    Stacks,
    StandBy,
    StandingBy,
    Stop,
)
from forgectl.redaction import Redaction, of_run
from forgectl.stacks.evidence import RankEvidence
from forgectl.stacks.whole_mesh import whole_mesh
from forgectl.system.processes import Identity, boot_id, identify, open_pidfd
from forgectl.system.shared_folders import shared_folders
from forgectl.system.tasks import Background
from forgectl.transport.ways import way_to
from forgectl.wire.envelope import Refusal
from forgectl.wire.listener import LOOK_SECONDS
from forgectl.wire.unix_sockets import dial, private_folder

REPORT_SECONDS = 0.02
"""Least time between two reports to followers; the first change after a quiet time is reported at once."""
REPORT_REST = 4.0
"""Least time between two reports, as a multiple of the CPU time of the last one. With thousands of ranks a report takes
longer than REPORT_SECONDS, and reports must leave the controller time for its work."""
FAREWELL_SECONDS = 15.0
"""What agents may take to quit after the end of a run, while no log data comes."""
LOGS_SECONDS = 300.0
"""What fetching logs may take after the end of a run, however slow it is; the rest stays on its host."""
Handed = dict[str, list[int]]
"""Host → descriptors of what the launching command has started there."""
GPU_SECONDS = 10.0
STAND_BY_SECONDS = 300.0
"""What a spare may take to import what it preloads."""


class Controller:
    """One run, from its first agent to its last."""

    def __init__(
        self, run_dir: RunDir, secrets: dict[str, str], adopt: bool, owner: Identity | None, handed: Handed
    ) -> None:
        self.dir = run_dir
        self._sockets, self._messages = run_dir.sockets, run_dir.messages
        self.run = Run.new(run_dir.run, run_dir.read_plan())
        self._secrets = secrets
        self._keys = MessageKeys(run_dir, self.run.plan)
        self.server = ControlServer(self, run_dir.control_socket)
        self.log_fetcher = LogFetcher(run_dir, self.run.plan.log_limit, self.server.followed)
        self._events = Events(self.run)
        redact = _redaction(self.run.plan, secrets)
        self._incidents = Incidents(run_dir, redact, reads_logs=secrets.keys() >= set(self.run.plan.secrets))
        self._hooks = Hooks(run_dir, self.run.plan, redact, self.record)
        recalled: list[RunEvent] = []
        whole = not adopt or self._recall(recalled)
        self._journal = journal.Journal(run_dir.journal_file)
        self._over = asyncio.Event()
        self._report_due = False
        self._next_report = 0.0  # the earliest time of the next report, by the monotonic clock
        self._additions = Additions(self._look_for_gpus)
        self._changes = Changes()
        self._moving: set[str] = set()
        self._diagnosing: set[str] = set()  # the meshes whose ranks are looked at
        self._seen: tuple[Diagnosed, tuple[RankEvidence, ...]] | None = None  # what is recorded now, and from what
        self._alarms: dict[Waited | TimeUp, asyncio.TimerHandle] = {}
        self._tasks = Background()
        places = [run_dir.agent_place(i, host) for i, host in enumerate(self.run.plan.hosts)]
        self.links = {
            name: AgentLink(
                host,
                self._config_of(host.plan, place),
                way_to(host.plan, place.socket, handed.get(name, ())),
                self,
                unsure=not whole,
                adopted=adopt,
            )
            for place, (name, host) in zip(places, self.run.hosts.items(), strict=True)
        }
        self.log_fetcher.attach(self.links.values())
        for event in recalled if whole else ():  # the controller before this one ended before it began their commands
            if event.seq not in self.run.hooks_begun:
                self._hooks.take(event)
        self.record(Born(os.getpid(), adopt, not whole, owner or self.run.owner))
        away = any(not host.local for host in self.run.plan.hosts)  # whether agents live there, AgentLink finds out
        if adopt and not (self.run.ended or away or run_dir.has_agent()):
            # Nothing is left to adopt: the leases are over, or the machine was rebooted.
            self.record(StopAsked(None, 0.0, "the loss of its controller"))

    def _recall(self, events: list[RunEvent]) -> bool:
        """Restore the state from the journal; False if it was damaged: then the living agents fill the gaps.

        Adds what has happened to `events`.
        """
        records, whole = journal.read(self.dir.journal_file)
        try:
            events += self._replay(records)
        except Exception as e:  # whatever it holds: without a controller nobody could end the run
            whole = False
            note(f"the journal lacks too much to be replayed: {e!r}")
            self.run = Run.new(self.run.id, self.run.plan)
            self._events = Events(self.run)
            records = [(when, r) for when, r in records if isinstance(r, (Born, StopAsked))]
            self._replay(records)
        if not whole:
            journal.repair(self.dir.journal_file, records)
        for host in self.run.hosts.values():
            if host.state == "up":
                host.state = "reconnecting"
        return whole

    def _replay(self, records: list[tuple[float, Record]]) -> list[RunEvent]:
        found = []
        for when, record in records:
            if isinstance(record, Happened) and (why := unsound(self.run, record)):
                note(f"left out of the journal: an event of host {record.host[:80]!r}: {why[:200]}")
                continue
            self._apply(when, record)
            found += self._events.after(record, when, None)
        return found

    def _config_of(self, host: HostPlan, place: AgentPlace) -> Callable[[bool], AgentConfig]:
        def config(sweep: bool) -> AgentConfig:
            plan, member = self.run.plan, self._keys.of(host)
            return agent_config(self.dir, plan, host, place, self._secrets, first=not sweep, membership=member)

        return config

    # ------------------------------------------------------------ what happens, and what follows

    def record(self, record: Record) -> None:
        """Write a record to the journal, apply it to the state, and send new commands to the hosts it concerns."""
        now = time.time()
        if isinstance(record, AgentLost):
            note(record.why)
        monotonic = time.monotonic()
        self._journal.append(now, record, monotonic)
        self._apply(now, record)
        self._take_notice(self._events.after(record, now, monotonic))  # before any command that follows is sent
        for host, subjects in self._changes.after(self.run, record).items():
            self.links[host].push(subjects)
        if self.run.ended:
            self._over.set()
        for mesh in self.run.to_move():
            if mesh.name not in self._moving:
                self._moving.add(mesh.name)
                self._tasks.begin(self._move(mesh))
        self._diagnose_hung()
        self._set_alarms()
        self._report_soon()

    def _take_notice(self, events: list[RunEvent]) -> None:
        """Keep an incident of each failure, and run the user's commands for what happened with one record."""
        failing = any(event.event == "mesh_failing" for event in events)
        for event in events:
            mesh = self.run.meshes.get(event.mesh or "")
            saves = event.event in ("mesh_hung", "call_timed_out") or (event.event == "host_lost" and not failing)
            if saves or (event.event == "mesh_failing" and not (mesh and mesh.ended_by_hang)):
                hosts: dict[str, str] = {host.plan.name: host.state for host in self.run.hosts.values()}
                seen = incident_of(*self._seen) if self._seen else {}
                self._incidents.write(event, mesh, hosts, **seen)
            elif event.event in ("mesh_restarted", "mesh_failed") and event.mesh in self._events.failing:
                self._incidents.amend(self._events.failing[event.mesh], event)
            self._hooks.take(event)

    def _set_alarms(self) -> None:
        """Have each record that time alone brings written when it is due, by a clock that nobody sets."""
        due = self.run.alarms()
        for record in self._alarms.keys() - due.keys():
            self._alarms.pop(record).cancel()
        for record in due.keys() - self._alarms.keys():
            when, whole = due[record]
            wait = min(max(0.0, when - time.time()), whole)  # unix time may have been set back meanwhile
            self._alarms[record] = asyncio.get_running_loop().call_later(wait, self._ring, record)

    def _ring(self, record: Waited | TimeUp) -> None:
        del self._alarms[record]
        self.record(record)

    def take_event(self, host: str, event: Event, *, catching_up: bool) -> bool:
        """Record an event of a host; False if it adds nothing. Raises ProtocolError if the host may not send it."""
        if check_event(self.run, host, event, catching_up=catching_up) is None:
            return False
        self.record(Happened(host, event.seq, event.what))
        return True

    async def _move(self, mesh: MeshState) -> None:
        """Find other hosts for a mesh that has lost a host."""
        try:
            record: Record = Moved(await self._additions.replace(self.run, mesh))
        except ForgeError as e:
            lost = ", ".join(n for n in mesh.plan.hosts if self.run.hosts[n].given_up)
            record = Stranded(mesh.name, f"host {lost} was lost, and no other takes its place: {e.message}")
        self._moving.discard(mesh.name)
        self.record(record)

    def _diagnose_hung(self) -> None:
        for mesh in [m for m in self.run.meshes.values() if m.to_diagnose and m.name not in self._diagnosing]:
            self._diagnosing.add(mesh.name)
            self._tasks.begin(self._diagnose(mesh, describe_hang))

    async def _diagnose(
        self, mesh: MeshState, describe: Callable[[MeshState, Sequence[RankEvidence]], Diagnosed | None]
    ) -> None:
        """Look where the ranks of a mesh are, and record it. Nothing of a mesh that hangs is ended before."""
        generation = mesh.generation
        request = ShowStacks({mesh.name: tuple(mesh.ranks)})
        try:
            answers = {part.host: part.meshes async for part in self.stacks(request)}
            if self.run.ended or mesh.ended or mesh.generation != generation:
                return
            seen = whole_mesh(self.document().mesh(mesh.name), answers)
            if (found := describe(mesh, seen)) is not None:
                self._seen = found, seen
                self.record(found)
        finally:
            self._seen = None
            self._diagnosing.discard(mesh.name)
        self._diagnose_hung()  # if it has begun to hang meanwhile

    def call_timed_out(self, what: CallTimedOut) -> None:
        """Save where the ranks of a mesh are that has not answered a call in time."""
        mesh = self.run.meshes.get(what.mesh)
        if mesh is not None and mesh.generation == what.generation and mesh.up and mesh.name not in self._diagnosing:
            self._diagnosing.add(mesh.name)
            self._tasks.begin(self._diagnose(mesh, functools.partial(describe_late, what.what)))

    async def _look_for_gpus(self, host: HostPlan) -> tuple[Gpu, ...]:
        """The GPUs of a host; none if it does not answer."""
        answer = await self.links[host.name].ask(GetGpus(host.gpus), HostGpus, GPU_SECONDS, check_gpus)
        return answer.gpus if answer else ()

    def synced(self, host: str) -> None:
        """Have a spare warm what it would need, as its agent answers and may know nothing of that."""
        if self.run.hosts[host].spare:
            self._tasks.begin(self._stand_by(self.run.hosts[host]))

    async def _stand_by(self, host: HostState) -> None:
        living = [m.plan for m in self.run.meshes.values() if not m.ended]
        needed = gpus_needed(living)
        gpus = await self._look_for_gpus(host.plan) if needed else ()
        free = [g for g in gpus if g.holder is None]
        meshes = standing_in(self.run.plan, living, host.plan.name, os.environ)
        shares = tuple(share_of(mesh, host.plan) for mesh in meshes)
        link = self.links[host.plan.name]
        answer = await link.ask(StandBy(shares, tuple(free[:needed])), StandingBy, STAND_BY_SECONDS)
        why = "it did not answer" if answer is None else answer.why
        if len(free) < needed:
            why = why or f"{len(free)} of its {len(gpus)} GPUs are free, and it needs {needed}"
        if why:
            note(f"spare {host.plan.name}: {why[:500]}")
        host.standing_by = why
        self._report_soon()

    def wants_back(self, host: str) -> bool:
        """Whether a host that was lost may come back."""
        return self.run.wants_back(host)

    def may_leave(self, host: str) -> bool:
        """Whether spares take all that a host ran, if its agent has ended."""
        return self.run.may_leave(host)

    def changed(self) -> None:
        """Report a change of the state that has no record in the journal."""
        self._report_soon()

    def _apply(self, when: float, record: Record) -> None:
        self.run.apply(when, record)
        if isinstance(record, (Happened, AgentUp, AgentLost)) and not self.run.hosts[record.host].plan.local:
            self.log_fetcher.take(record)

    def logs_fetched(self, host: str) -> bool:
        """Whether the host's agent may quit: on an ssh host its logs are removed then."""
        return self.log_fetcher.has_all(host)

    def commands_for(self, host: str, subjects: Collection[str] | None = None) -> list[Command]:
        """What a host's agent should be doing now; `subjects` are those of `commands`."""
        return commands(self.run, host, subjects)

    def last_commands_for(self, host: str) -> list[Stop]:
        """The commands for a host that will be given up."""
        return last_commands(self.run, host)

    def ask_stop(self, meshes: tuple[str, ...] | None, grace: float, by: str, exit_code: int = 0) -> None:
        """End meshes (None: the run), unless the run has ended."""
        if grace == 0 and meshes is None:
            self._hooks.hurry()
        if not self.run.ended:
            self.record(StopAsked(meshes, grace, by, exit_code))

    def ask_restart(self, meshes: dict[str, int], grace: float, by: str) -> None:
        """Begin the next generation of meshes (mesh → its present generation), unless the run has ended."""
        if not self.run.ended:
            self.record(RestartAsked(meshes, grace, by))

    async def add_mesh(self, request: AddMesh) -> MeshAdded | Refusal:
        """Add a mesh to the run, or let the driver adopt one."""
        try:
            record = await self._additions.answer(self.run, request)
        except ForgeError as e:
            return Refusal.of(e)
        self.record(record)
        if isinstance(record, Adopted):
            return MeshAdded(record.mesh, self.run.meshes[record.mesh].first)
        for name in self.run.spares:
            self.synced(name)
        return MeshAdded(record.plan.mesh, self.run.meshes[record.plan.mesh].first)

    def take_report(self, report: Report) -> None:
        """Record what the driver reports of a mesh: set up, or failed."""
        if not self.run.ended:
            self.record(report)

    def owner_left(self) -> None:
        """End the run, as the process that owned it has ended."""
        self.ask_stop(None, FAILURE_GRACE, "the end of its launcher")

    async def use(self) -> Use:
        """Mesh → rank → its use now, for the whole run."""
        found: Use = {}
        parts = await asyncio.gather(*(link.stats() for link in self.links.values()))
        for host, part in zip(self.links, parts, strict=True):
            for mesh, ranks in own_use(self.run, host, part).items():
                found.setdefault(mesh, {}).update(ranks)
        return found

    async def stacks(self, request: ShowStacks) -> AsyncIterator[HostStacks]:
        """Where ranks are, host by host as they answer."""

        async def ask(host: str, ranks: dict[str, tuple[int, ...]]) -> HostStacks:
            answer = await self.links[host].ask(GetStacks(ranks, request.native), Stacks, request.seconds)
            return HostStacks(host, own_stacks(self.run, host, answer.meshes) if answer else None)

        for part in asyncio.as_completed([ask(*share) for share in self._by_host(request.ranks).items()]):
            yield await part

    def _by_host(self, wanted: dict[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
        """Host → mesh → those of the wanted ranks that run there."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for mesh in (self.run.meshes[m] for m in wanted if m in self.run.meshes):
            for number in (n for n in wanted[mesh.name] if n in mesh.ranks and mesh.ranks[n].exit is None):
                share = found.setdefault(mesh.ranks[number].plan.host, {})
                share[mesh.name] = (*share.get(mesh.name, ()), number)
        return found

    def document(self, use: Use | None = None) -> RunStatus:
        """The run as `forgectl status` shows it."""
        return run_document(self.run, self.dir, use=use)

    def _report_soon(self) -> None:
        if not self._report_due:
            self._report_due = True
            wait = self._next_report - time.monotonic()
            asyncio.get_running_loop().call_later(max(0.0, wait), self._report)

    def _report(self) -> None:
        self._report_due, began = False, time.process_time()
        taken = not self.server.is_followed or self.server.broadcast(self.document())
        took = time.process_time() - began
        self._next_report = time.monotonic() + max(REPORT_SECONDS, REPORT_REST * took)
        if not taken:
            self._report_soon()  # a follower was too slow for this report

    # ------------------------------------------------------------ life

    async def serve(self, announce: Callable[[], None]) -> None:
        """Run until the run has ended and every agent has quit; `announce` is called once the controller listens."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask_stop, None, FAILURE_GRACE, signal.Signals(number).name)
        await self.server.listener.open()
        announce()
        self._watch_owner()
        links = [asyncio.create_task(link.run()) for link in self.links.values()]
        keepers = [asyncio.create_task(k) for k in self._keepers()]
        await self._over.wait()
        await self._wait_for_agents(links)
        await self._hooks.finish()
        for keeper in keepers:
            keeper.cancel()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._messages, ignore_errors=True)
            shutil.rmtree(self._sockets)  # before the state is final: after that nobody would clean up
        for host in self.run.plan.hosts:
            if host.local:  # its agent may have been killed
                shared_folders(self.run.id, self.dir.path, host.name).remove()
        self._keys.forget()
        self._write_final_state()
        await self.server.close(self.document())
        self._journal.close()

    def _keepers(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return self.server.listener.keep_open(), self.log_fetcher.run(), self._keep_directory()

    async def _wait_for_agents(self, links: list[asyncio.Task[None]]) -> None:
        """Wait until every agent has quit: for FAREWELL_SECONDS, and again as long as logs arrive meanwhile."""
        fetched = -1
        late = set(links)
        end = time.monotonic() + LOGS_SECONDS
        while late and fetched != self.log_fetcher.fetched and time.monotonic() < end:
            fetched = self.log_fetcher.fetched
            _, late = await asyncio.wait(late, timeout=FAREWELL_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _keep_directory(self) -> None:
        """End the run if its directory is removed: nobody could find the run any more."""
        while self.dir.plan_file.exists():  # noqa: ASYNC110 (nothing sends an event for it)
            await asyncio.sleep(LOOK_SECONDS)
        self.ask_stop(None, FAILURE_GRACE, "the removal of its run directory")

    def _write_final_state(self) -> None:
        final = run_document(self.run, self.dir, alive=False)
        with contextlib.suppress(OSError):  # a full disk: the same state follows from the journal, with more work
            self.dir.write_final(final)

    def _watch_owner(self) -> None:
        """Notice the end of the owner even while it is not connected, or before it ever was."""
        if self.run.owner is None:
            if self.dir.owned_file.exists():  # the owner died before a controller learned its pid
                self.owner_left()
            return
        pidfd = open_pidfd(self.run.owner)
        if pidfd is None:
            self.owner_left()
            return
        loop = asyncio.get_running_loop()

        def left(pidfd: int) -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self.owner_left()

        loop.add_reader(pidfd, left, pidfd)


def _redaction(plan: Plan, secrets: dict[str, str]) -> Redaction:
    """The redaction of what leaves the run's own files: incidents, and events for commands."""
    environments = [
        plan.env,
        *(host.env or {} for host in plan.hosts),
        *(e for m in plan.meshes for e in m.env.values()),
    ]
    return of_run(secrets.values(), os.environ, *environments)


def main(arguments: list[str]) -> None:
    """`boot.py controller RUN_DIR [--adopt] [--lock=FD] [--owner=PID] [--handed=JSON]`.

    Prints `ready` once the run has a controller. It refuses a run that another user may have touched. Secrets come as
    JSON on standard input. `--lock` is the inherited lock of the run, `--owner` the parent, `--handed` the descriptors
    that `transport.ways` takes, by host.
    """
    options = dict(a.split("=", 1) for a in arguments[1:] if "=" in a)
    try:
        run_dir = RunDir.existing(Path(arguments[0]))
        sockets = run_dir.sockets
    except NotOursError as e:
        sys.exit(e.message)
    owner = _parent(int(options["--owner"])) if "--owner" in options else None
    secrets = json.loads(sys.stdin.buffer.readline() or b"{}")
    handed: Handed = json.loads(options.get("--handed", "{}"))
    for fd in (fd for fds in handed.values() for fd in fds):
        os.set_inheritable(fd, False)
    if "--lock" in options:
        os.set_inheritable(int(options["--lock"]), False)
    elif not _become_only_controller(run_dir):
        _say_ready()
        return
    if run_dir.read_final() is None:
        private_folder(sockets)  # not before: nobody would remove it again for a run that has ended
        asyncio.run(_run(run_dir, secrets, "--adopt" in arguments, owner, handed))
        with contextlib.suppress(ForgeError, OSError):  # `forgectl prune` says what is wrong
            begin_pruning()  # now, as the runs of a user take more room when one has ended
    else:
        _say_ready()


def _say_ready() -> None:
    """Tell who started this controller that it listens, or that there is nothing more to do."""
    with contextlib.suppress(BrokenPipeError):  # killed meanwhile
        os.write(1, b"ready\n")


def _parent(pid: int) -> Identity:
    """The identity of our parent; if it has ended already, an identity that matches no process."""
    identity = identify(pid)
    if identity is None or os.getppid() != pid:
        return Identity(pid, 0, boot_id())
    return identity


def _become_only_controller(run_dir: RunDir) -> bool:
    """Take the run's lock (True), or wait for its holder: until it ends, or until it listens (False)."""
    while run_dir.lock_controller() is None:  # held until this process ends
        try:
            dial(run_dir.control_socket, 5.0).close()
            return False
        except NotOursError as e:
            sys.exit(e.message)
        except OSError:
            time.sleep(0.02)
    return True


async def _run(run_dir: RunDir, secrets: dict[str, str], adopt: bool, owner: Identity | None, handed: Handed) -> None:
    def announce() -> None:
        _say_ready()
        os.dup2(2, 1)  # the log; the process that waits for that line sees the end of the pipe

    await Controller(run_dir, secrets, adopt, owner, handed).serve(announce)
