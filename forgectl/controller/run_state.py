"""A run, and how each record changes it. Pure: no clock, no I/O; the same records give the same state."""

from __future__ import annotations

from dataclasses import dataclass, field

from forgectl.controller import verdict
from forgectl.controller.records import (
    Added,
    Adopted,
    AgentLost,
    AgentUp,
    Born,
    Diagnosed,
    Happened,
    HookBegun,
    HookEnded,
    Moved,
    Record,
    RestartAsked,
    StopAsked,
    Stranded,
    TimeUp,
    Waited,
)
from forgectl.controller.restarts import note_fall, refusal
from forgectl.controller.state import (
    FAILURE_GRACE,
    MOST_TEXT,
    MOST_UNKILLABLE,
    HostState,
    MeshState,
    describe,
)
from forgectl.model.plan import Plan
from forgectl.model.status import OVER, RunStateName
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import (
    MeshGone,
    MessengerGone,
    MessengerOpened,
    Notice,
    Prepared,
    ProgressResumed,
    ProgressStopped,
    RankExited,
    RankStarted,
    Refused,
    StartFailed,
    StoreOpened,
)
from forgectl.system.processes import Identity
from forgectl.wire.envelope import Refusal


@dataclass
class Run:
    """The state of one run, the hosts and the meshes. Times are unix times."""

    id: str
    plan: Plan
    state: RunStateName = "starting"
    started_at: float = 0.0
    ended_at: float | None = None
    controller_pid: int = 0
    owner: Identity | None = None  # the process that the run ends with
    hosts: dict[str, HostState] = field(default_factory=dict)
    meshes: dict[str, MeshState] = field(default_factory=dict)
    leased: bool = False  # every mesh has its GPUs, so ranks may start
    was_up: bool = False
    stop: StopAsked | None = None
    error: Refusal | None = None
    heirs: dict[str, str] = field(default_factory=dict)  # host that was lost → spare that has taken its place
    hooks_begun: set[int] = field(default_factory=set)  # the events whose commands of `on:` were started

    @classmethod
    def new(cls, run_id: str, plan: Plan) -> Run:
        run = cls(run_id, plan)
        run.hosts = {h.name: HostState(h, spare=h.name in plan.spares) for h in plan.hosts}
        run.meshes = {m.mesh: MeshState(m) for m in plan.meshes}
        for mesh in run.meshes.values():
            mesh.begin_generation(0)
        return run

    @property
    def ended(self) -> bool:
        return self.state in OVER

    # ------------------------------------------------------------ records

    def apply(self, now: float, record: Record) -> None:
        """Apply one record; `now` is its unix time."""
        if isinstance(record, Born):
            self.started_at = self.started_at or now
            self.controller_pid = record.pid
            self.owner = record.owner
            if record.rebuilt:
                for host in self.hosts.values():
                    host.last_seq = 0
        elif isinstance(record, AgentUp):
            self._agent_up(now, record)
        elif isinstance(record, AgentLost):
            self._agent_lost(now, record)
        elif isinstance(record, Happened):
            self._happened(now, record)
        elif isinstance(record, Added):
            self._added(record)
        elif isinstance(record, Adopted):
            self.meshes[record.mesh].orphan = False
        elif isinstance(record, Moved):
            self._moved(record)
        elif isinstance(record, Stranded):
            self._stranded(now, record)
        elif isinstance(record, Waited):
            self._waited(record)
        elif isinstance(record, TimeUp):
            self._time_up(record)
        elif isinstance(record, Diagnosed):
            self._diagnosed(record)
        elif isinstance(record, Report):
            self._reported(now, record)
        elif isinstance(record, RestartAsked):
            self._restart_asked(record)
        elif isinstance(record, HookBegun):
            self.hooks_begun.add(record.seq)
        elif isinstance(record, HookEnded):
            pass
        else:
            self._stop_asked(now, record)
        for mesh in self.meshes.values():
            self._settle(mesh, now)
        self._settle_run(now)

    def _agent_up(self, now: float, record: AgentUp) -> None:
        host = self.hosts[record.host]
        if host.pid != record.pid or host.boot_id != record.boot_id:
            if host.pid is not None and host.state != "lost":  # an earlier controller died between the two records
                self._agent_lost(now, AgentLost(record.host, replaced(record.host)))
            host.last_seq = 0
            host.messenger = None
        if host.given_up and self.plan.spares:  # it has come back
            host.spare = True
            self.heirs.pop(record.host, None)
        host.state, host.pid, host.boot_id, host.given_up = "up", record.pid, record.boot_id, False

    def _agent_lost(self, now: float, record: AgentLost) -> None:
        host = self.hosts[record.host]
        host.state, host.given_up, host.messenger = "lost", record.final, None
        host.standing_by = None
        started = self.was_up or any(m.has_begun for m in self.meshes.values())
        if self.stop is None and not started:
            self._roll_back(now, Refusal(record.code, record.why, record.hint))
        for mesh in self.meshes.values():
            if record.host in mesh.plan.by_host and not mesh.ended:
                mesh.prepared.discard(record.host)
                mesh.gone.add(record.host)
                mesh.lost |= {record.host} if record.final else set()
                mesh.lose_ranks(record.host, now, record.why, lease=record.lease)

    def _added(self, record: Added) -> None:
        name = record.plan.mesh
        before = self.meshes.pop(name, None)  # so that the new mesh comes last in the order
        mesh = self.meshes[name] = MeshState(
            record.plan, added=True, stop=self.stop, claim=record.claim, terms=record.terms
        )
        # If a mesh of this name ended before, its logs stay, and agents know its generations: continue the numbers.
        mesh.begin_generation(before.generation + 1 if before else 0)
        mesh.first = mesh.generation

    @property
    def spares(self) -> list[str]:
        """The hosts that can take the place of a lost one now."""
        return [name for name, host in self.hosts.items() if host.spare and host.state == "up"]

    def may_leave(self, name: str) -> bool:
        """Whether all that runs on a host can go to a spare at once: sooner than a new agent there could be ready."""
        here = [m.plan for m in self.meshes.values() if not m.ended and name in m.plan.by_host]
        others = [spare for spare in self.spares if spare != name]
        return bool(others and here) and all(plan.may_move for plan in here)

    def wants_back(self, name: str) -> bool:
        """Whether a host that was lost may come back: as a spare."""
        return bool(self.plan.spares) and self.hosts[name].given_up and self.stop is None and not self.ended

    def to_move(self) -> list[MeshState]:
        """The meshes that need other hosts now. One that shares GPUs waits until their owner is where it will be."""
        return [m for m in self.meshes.values() if m.needs_hosts and not self._owner_must_move(m)]

    def _owner_must_move(self, mesh: MeshState) -> bool:
        owner = self.meshes.get(mesh.plan.unit.share_gpus_with or "")
        return owner is not None and not owner.ended and bool(owner.lost)

    def _moved(self, record: Moved) -> None:
        """Give the next generation its new hosts. Their agents take it for another mesh of the same name."""
        mesh = self.meshes[record.plan.mesh]
        if not mesh.needs_hosts:
            return
        mesh.left |= {h: mesh.first for h in mesh.plan.hosts if h not in record.plan.hosts}
        for host in record.plan.hosts:
            mesh.left.pop(host, None)
        if len(record.plan.hosts) == len(mesh.plan.hosts):
            pairs = zip(mesh.plan.hosts, record.plan.hosts, strict=True)
            self.heirs |= {old: new for old, new in pairs if old in mesh.lost and self.hosts[new].spare}
        for host in record.plan.hosts:
            self.hosts[host].spare = False
        mesh.before += mesh.generation - mesh.first
        mesh.plan, mesh.first, mesh.prepared = record.plan, mesh.generation, set()
        mesh.begin_generation(mesh.generation)
        mesh.lost = {h for h in record.plan.hosts if self.hosts[h].given_up}  # while its place was looked for
        mesh.needs_hosts = bool(mesh.lost)

    def _stranded(self, now: float, record: Stranded) -> None:
        mesh = self.meshes[record.mesh]
        if not mesh.needs_hosts:
            return
        mesh.needs_hosts, mesh.hopeless, mesh.failed = False, True, True
        mesh.gone = set(mesh.plan.hosts)
        for rank in mesh.ranks.values():
            rank.state, rank.ended_at, rank.failed_at, rank.lost_by = "lost", now, now, record.why

    def alarms(self) -> dict[Waited | TimeUp, tuple[float, float]]:
        """The records that time alone brings: when each is due (unix time), and the length of its whole wait."""
        found: dict[Waited | TimeUp, tuple[float, float]] = {}
        for mesh in self.meshes.values():
            if mesh.ended or mesh.ending:
                continue
            if mesh.due is not None:
                found[Waited(mesh.name, mesh.generation)] = mesh.due, mesh.wait
            if mesh.begun_at is not None and (limit := mesh.plan.unit.time_limit) is not None:
                found[TimeUp(mesh.name)] = mesh.begun_at + limit, limit
        return found

    def _waited(self, record: Waited) -> None:
        mesh = self.meshes[record.mesh]
        if mesh.generation == record.generation:
            mesh.due = None

    def _time_up(self, record: TimeUp) -> None:
        mesh = self.meshes[record.mesh]
        if not (mesh.ended or mesh.ending):
            mesh.failed = mesh.time_up = True

    def _diagnosed(self, record: Diagnosed) -> None:
        mesh = self.meshes.get(record.mesh)
        if mesh is not None and mesh.generation == record.generation and mesh.to_diagnose and not record.call:
            mesh.diagnosed = record
            mesh.failed = mesh.ended_by_hang = mesh.plan.unit.hang.do == "restart"

    def _reported(self, now: float, record: Report) -> None:
        mesh = self.meshes.get(record.mesh)
        if mesh is None or mesh.generation != record.generation or mesh.ending or mesh.ended:
            return
        if record.error is None:
            mesh.set_up = True
        else:
            self._cannot_start(now, mesh, record.error, record.traceback, Refusal(1, record.error))

    def _cannot_start(self, now: float, mesh: MeshState, why: str, detail: str, error: Refusal) -> None:
        """Note why a generation did not come up. If it is the first of a declared mesh, the launch has failed."""
        mesh.failed, mesh.cannot_start, mesh.detail, mesh.error = True, why, detail, error
        first = mesh.generation == mesh.first and not mesh.set_up
        if (first or mesh.hopeless) and not mesh.added:
            self._roll_back(now, error)

    def _stop_asked(self, now: float, record: StopAsked) -> None:
        if record.meshes is None:
            self.stop = record
        for mesh in self.meshes.values():
            if not mesh.ended and (record.meshes is None or mesh.name in record.meshes):
                mesh.stop = record

    def _restart_asked(self, record: RestartAsked) -> None:
        for name, generation in record.meshes.items():
            mesh = self.meshes.get(name)
            if mesh is None or mesh.generation != generation or not mesh.may_be_asked_to_restart:
                continue
            if mesh.due is not None:
                mesh.due = None  # it only waits to start
            else:
                mesh.again = record

    def _happened(self, now: float, record: Happened) -> None:
        host = self.hosts[record.host]
        if record.seq <= host.last_seq:
            return  # replayed
        host.last_seq = record.seq
        what = record.what
        if isinstance(what, (MessengerOpened, MessengerGone)):
            self._messenger_event(now, host, what)
            return
        mesh = self.meshes.get(what.mesh)
        if mesh is None:
            return  # somebody else gave the agent commands
        if isinstance(what, Prepared):
            mesh.prepared.add(record.host)
        elif isinstance(what, Refused):
            # Agents refuse before anything of the mesh runs. If it runs on other hosts, it has to be ended there first.
            mesh.gone.update({record.host} if mesh.has_begun else mesh.plan.hosts)
            mesh.hopeless = True
            error = Refusal(
                what.error.code, what.error.message[:MOST_TEXT], (what.error.hint or "")[:MOST_TEXT] or None
            )
            self._cannot_start(now, mesh, error.message, "", error)
        elif isinstance(what, Notice):
            mesh.report_counts[record.host] = mesh.report_counts.get(record.host, 0) + 1
            mesh.notices = [*mesh.notices[-9:], what.message[:MOST_TEXT]]
        elif what.generation >= mesh.generation:
            if what.generation > mesh.generation:  # the journal lost the restart in between
                mesh.restarts += [now] * (what.generation - mesh.generation)
                mesh.begin_generation(what.generation)
            if isinstance(what, (StoreOpened, RankStarted)):
                mesh.due = None  # agents do that on command: the journal lost the end of the wait
            self._generation_event(now, record.host, mesh, what)

    def _messenger_event(self, now: float, host: HostState, what: MessengerOpened | MessengerGone) -> None:
        if isinstance(what, MessengerOpened):
            host.messenger = what
            host.messengers_lost = max(host.messengers_lost, what.generation)  # the journal may have lost their ends
            return
        opened, host.messenger = host.messenger, None
        host.messengers_lost = max(host.messengers_lost, what.generation + 1)
        how = what.why[:MOST_TEXT] if opened else f"it could not start: {what.why[:MOST_TEXT]}"
        why = f"the messenger on host {host.plan.name}: {how}"
        for mesh in self.meshes.values():
            if mesh.plan.stays and host.plan.name in mesh.plan.by_host and not (mesh.ended or mesh.ending):
                self._cannot_start(now, mesh, why, "", Refusal(69, why))

    def _generation_event(
        self,
        now: float,
        host: str,
        mesh: MeshState,
        what: StoreOpened | StartFailed | RankStarted | RankExited | MeshGone | ProgressStopped | ProgressResumed,
    ) -> None:
        if isinstance(what, StoreOpened):
            mesh.port = what.port
        elif isinstance(what, RankStarted):
            mesh.rank_started(what, now)
        elif isinstance(what, RankExited):
            mesh.rank_exited(what, now)
        elif isinstance(what, MeshGone):
            mesh.gone.add(host)
            mesh.killed += what.killed
            room = MOST_UNKILLABLE - len(mesh.unkillable)
            mesh.unkillable.extend(who[:MOST_TEXT] for who in what.unkillable[:room])
        elif isinstance(what, ProgressStopped):
            mesh.report_counts[host] = mesh.report_counts.get(host, 0) + 1
            mesh.progress_stopped(host, what, now)
        elif isinstance(what, ProgressResumed):
            mesh.progress_resumed(host)
        elif isinstance(what, StartFailed):
            mesh.report_counts[host] = mesh.report_counts.get(host, 0) + 1
            if mesh.stop is not None:
                return
            why, hint = what.message[:MOST_TEXT], (what.hint or "")[:MOST_TEXT] or None
            self._cannot_start(now, mesh, why, what.detail, Refusal(what.code, f"mesh {mesh.name} {why}", hint))

    def _roll_back(self, now: float, error: Refusal) -> None:
        """End all that was started, as the launch cannot succeed."""
        if self.error is None:
            self.error = error
        if self.stop is None:
            self._stop_asked(now, StopAsked(None, FAILURE_GRACE, "a failed launch", error.code))

    # ------------------------------------------------------------ what follows

    def _settle(self, mesh: MeshState, now: float) -> None:
        """Change the state of one mesh as far as the records allow."""
        if mesh.ended:
            return
        if mesh.ending:
            may = mesh.stop is None and mesh.state != "stopping" and self._has_hosts()
            note_fall(mesh, now)
            if may and mesh.again is not None:
                mesh.become("restarting", now)
            elif may and mesh.failed and refusal(mesh, now) is None:
                mesh.decide_wait(now)
                mesh.become("restarting", now)
            else:
                mesh.become("stopping", now)
            if mesh.covers(mesh.gone):
                self._end_generation(mesh, now)
            return
        if mesh.state == "pending" and self.leased and mesh.covers(mesh.prepared):
            mesh.become("starting", now)
        if mesh.state == "restarting" and mesh.due is None and mesh.covers(mesh.prepared):
            mesh.become("starting", now)
        if mesh.state == "starting" and not mesh.unstarted:
            if not mesh.plan.stays:
                mesh.become("running", now)
            elif mesh.set_up:
                mesh.become("ready", now)

    def _has_hosts(self) -> bool:
        """Whether any host is left for another generation; its placement is decided when it begins."""
        return not all(host.given_up for host in self.hosts.values())

    def _end_generation(self, mesh: MeshState, now: float) -> None:
        if mesh.state == "restarting":
            asked = mesh.again is not None  # which is no failure, and waits for nothing
            root = mesh.last_root_cause = None if asked or mesh.ended_by_hang else mesh.root_cause()
            mesh.last_failure = None if asked else mesh.cause or (root and describe(root)) or None
            if not asked:
                mesh.restarts.append(now)
            mesh.begin_generation(mesh.generation + 1)
            mesh.due = now + mesh.wait if mesh.wait and not asked else None
            mesh.needs_hosts = bool(mesh.lost)
            if mesh.plan.kind == "driver":
                self._leave_orphans()
        elif mesh.done and mesh.stop is None:
            mesh.become("succeeded", now)
        elif mesh.failed and any(r.state == "lost" for r in mesh.ranks.values()):
            mesh.become("lost", now)
        elif mesh.failed and mesh.stop is not None and refusal(mesh, now) is None:
            mesh.become("stopped", now)  # it was restarting when somebody ended it
        elif mesh.failed:
            mesh.become("failed", now)
        else:
            mesh.become("succeeded" if mesh.done else "stopped", now)

    def _leave_orphans(self) -> None:
        """The driver has ended, and another one will begin: meshes wait until it adopts them.

        Those that it was constructing begin anew, as the next driver cannot know how far it came.
        """
        for mesh in self.meshes.values():
            mesh.orphan = mesh.plan.stays and not mesh.ended
            if mesh.orphan and mesh.open and not mesh.ending:
                mesh.again = RestartAsked({mesh.name: mesh.generation}, FAILURE_GRACE, "the restart of its driver")

    def _settle_run(self, now: float) -> None:
        meshes = list(self.meshes.values())
        self.leased = self.leased or all(m.covers(m.prepared) for m in meshes if not m.added)
        if self.leased:
            for mesh in meshes:
                self._settle(mesh, now)
        self.was_up = self.was_up or all(m.up or m.state in OVER for m in meshes if not m.added)
        if self.stop is None and (why := verdict.over(self)):
            self._stop_asked(now, StopAsked(None, FAILURE_GRACE, why))
            for mesh in meshes:
                self._settle(mesh, now)
        if all(m.ended for m in meshes) and (self.stop is not None or not self.plan.open):
            if not self.ended:
                self.state, self.ended_at = verdict.verdict(self), now
        elif self.stop is not None:
            self.state = "stopping"
        elif self.was_up:
            self.state = "running"

    @property
    def exit_code(self) -> int:
        """The exit code of a launch in the foreground: that of the failed workload, if there is one."""
        return verdict.exit_code(self)


def replaced(host: str) -> str:
    """Why ranks are lost on a host that has another agent, if no controller lived to record the loss of the first."""
    return f"the agent on host {host} was replaced"
