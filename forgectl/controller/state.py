"""A run's state, and how each record changes it. Pure: no clock, no I/O; the same records give the same state.

    pending ─▶ starting ─▶ running ─▶ stopping ─▶ succeeded | failed | stopped | lost
                  ▲            │
                  └─ restarting ◀─ (a failure that `restart:` allows for)

A mesh leaves `stopping` and `restarting` only when every host has said that nothing of the generation is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from signal import Signals
from typing import Literal

from forgectl.controller.records import AgentLost, AgentUp, Born, Happened, Record, StopAsked
from forgectl.plan.model import HostPlan, MeshPlan, Plan, RankPlan
from forgectl.protocol import (
    HAPPENINGS,
    MeshGone,
    Notice,
    Prepared,
    RankExited,
    RankStarted,
    Refusal,
    Refused,
    StartFailed,
    StoreOpened,
    unpack,
)

MeshStateName = Literal[
    "pending", "starting", "running", "ready", "degraded", "restarting",
    "stopping", "succeeded", "failed", "stopped", "lost",
]  # fmt: skip
RankStateName = Literal["starting", "running", "exited", "killed", "lost"]
RunStateName = Literal["starting", "running", "stopping", "succeeded", "failed", "stopped", "lost"]
HostStateName = Literal["starting", "up", "reconnecting", "lost", "gone"]

MESH_TRANSITIONS: dict[MeshStateName, tuple[MeshStateName, ...]] = {
    "pending": ("starting", "stopping", "failed", "stopped", "lost"),
    "starting": ("running", "ready", "stopping", "restarting", "failed", "stopped", "lost"),
    "running": ("stopping", "restarting", "succeeded", "failed", "stopped", "lost"),
    "ready": ("degraded", "stopping", "restarting", "succeeded", "failed", "stopped", "lost"),
    "degraded": ("ready", "stopping", "restarting", "failed", "stopped", "lost"),
    "restarting": ("starting", "stopping", "failed", "stopped", "lost"),
    "stopping": ("succeeded", "failed", "stopped", "lost"),
    "succeeded": (),
    "failed": (),
    "stopped": (),
    "lost": (),
}
"""The allowed changes of a mesh's state."""

ENDED: frozenset[str] = frozenset({"succeeded", "failed", "stopped", "lost"})
FAILURE_GRACE = 10.0
LEFTOVER_GRACE = 5.0
"""Seconds that the other ranks of a failed mesh, or what finished ranks left behind, have after SIGTERM."""


@dataclass
class Rank:
    """One rank of the current generation. Times are unix times."""

    plan: RankPlan
    state: RankStateName = "starting"
    pid: int | None = None
    log: str | None = None
    exit: RankExited | None = None
    ended_at: float | None = None
    failed_at: float | None = None  # when it failed, by its own error file; later than others it is collateral

    @property
    def failed(self) -> bool:
        """Whether it ended badly by itself, not because it was told to."""
        if self.state == "lost":
            return True
        return self.exit is not None and self.exit.exit_code != 0 and (not self.exit.asked or bool(self.exit.error))


@dataclass
class Mesh:
    """One mesh and its current generation."""

    plan: MeshPlan
    state: MeshStateName = "pending"
    since: float = 0.0
    generation: int = 0
    ranks: dict[int, Rank] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    port: int | None = None
    stop: StopAsked | None = None
    failed: bool = False
    cannot_start: str | None = None  # why the generation could not be started at all
    detail: str = ""
    restarts: list[float] = field(default_factory=list)
    killed: int = 0
    unkillable: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    last_failure: str | None = None  # what made the generation before this one end

    @property
    def name(self) -> str:
        return self.plan.mesh

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def up(self) -> bool:
        return self.state in ("running", "ready", "degraded")

    @property
    def ending(self) -> bool:
        """Whether its processes are to end, for whatever reason."""
        return not self.ended and (self.stop is not None or self.failed or self.done)

    @property
    def done(self) -> bool:
        """Whether every rank has come to a good end by itself."""
        return bool(self.ranks) and all(r.exit is not None and r.exit.exit_code == 0 for r in self.ranks.values())

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL for what is to end now."""
        if self.stop is not None:
            return self.stop.grace
        return FAILURE_GRACE if self.failed else LEFTOVER_GRACE

    def root_cause(self) -> Rank | None:
        """The rank that failed first; the others of `collateral()` fell with it."""
        failed = [r for r in self.ranks.values() if r.failed]
        return min(failed, key=lambda r: (r.failed_at or 0.0, r.plan.rank), default=None)

    def collateral(self) -> list[Rank]:
        """Ranks that failed after the first, most likely because of it."""
        root = self.root_cause()
        return [r for r in self.ranks.values() if r.failed and r is not root]

    def may_restart(self, now: float) -> bool:
        """Whether `restart:` allows for one more generation."""
        policy = self.plan.restart
        recent = [t for t in self.restarts if policy.within is None or now - t < policy.within]
        return len(recent) < policy.max

    def become(self, state: MeshStateName, now: float) -> None:
        """Change state, along MESH_TRANSITIONS only."""
        if state == self.state:
            return
        if state not in MESH_TRANSITIONS[self.state]:
            raise AssertionError(f"mesh {self.name}: {self.state} cannot become {state}")
        self.state, self.since = state, now

    def begin_generation(self, number: int) -> None:
        """Forget the processes of the generation before."""
        self.generation = number
        self.ranks = {r.rank: Rank(r) for r in self.plan.ranks}
        self.gone = set()
        self.port = None
        self.failed = False
        self.cannot_start = None
        self.detail = ""


@dataclass
class Host:
    """One host and its agent."""

    plan: HostPlan
    state: HostStateName = "starting"
    pid: int | None = None
    boot_id: str | None = None
    last_seq: int = 0
    last_seen: float | None = None


@dataclass
class Run:
    """One run. `exit_code` is what a launch in the foreground ends with."""

    id: str
    plan: Plan
    state: RunStateName = "starting"
    started_at: float = 0.0
    ended_at: float | None = None
    controller_pid: int = 0
    hosts: dict[str, Host] = field(default_factory=dict)
    meshes: dict[str, Mesh] = field(default_factory=dict)
    leased: bool = False  # every mesh has its GPUs: from here on ranks may start
    was_up: bool = False
    stop: StopAsked | None = None
    error: Refusal | None = None

    @classmethod
    def new(cls, run_id: str, plan: Plan) -> Run:
        run = cls(run_id, plan)
        run.hosts = {h.name: Host(h) for h in plan.hosts}
        run.meshes = {m.mesh: Mesh(m) for m in plan.meshes}
        for mesh in run.meshes.values():
            mesh.begin_generation(0)
        return run

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    # ------------------------------------------------------------ records

    def apply(self, now: float, record: Record) -> None:
        """Take in one record; `now` is the unix time that it was written with."""
        if isinstance(record, Born):
            self.started_at = self.started_at or now
            self.controller_pid = record.pid
        elif isinstance(record, AgentUp):
            self._agent_up(record)
        elif isinstance(record, AgentLost):
            self._agent_lost(now, record)
        elif isinstance(record, Happened):
            self._happened(now, record)
        else:
            self._stop_asked(now, record)
        for mesh in self.meshes.values():
            self._settle(mesh, now)
        self._settle_run(now)

    def _agent_up(self, record: AgentUp) -> None:
        host = self.hosts[record.host]
        if host.pid != record.pid or host.boot_id != record.boot_id:
            host.last_seq = 0
        host.state, host.pid, host.boot_id = "up", record.pid, record.boot_id

    def _agent_lost(self, now: float, record: AgentLost) -> None:
        host = self.hosts[record.host]
        host.state = "lost"
        if not self.was_up and not any(r.pid for m in self.meshes.values() for r in m.ranks.values()):
            self._roll_back(now, Refusal(record.code, record.why, record.hint))
        for mesh in self.meshes.values():
            if record.host not in mesh.plan.hosts or mesh.ended:
                continue
            mesh.prepared.discard(record.host)
            mesh.gone.add(record.host)
            lost = [r for r in mesh.ranks.values() if r.plan.host == record.host and r.exit is None]
            for rank in lost:
                rank.state, rank.ended_at, rank.failed_at = "lost", now, now
            if lost:
                mesh.failed = True
                mesh.detail = record.why

    def _stop_asked(self, now: float, record: StopAsked) -> None:
        if record.meshes is None:
            self.stop = record
        for mesh in self.meshes.values():
            if not mesh.ended and (record.meshes is None or mesh.name in record.meshes):
                mesh.stop = record

    def _happened(self, now: float, record: Happened) -> None:
        host = self.hosts[record.host]
        if record.seq <= host.last_seq:
            return  # replayed
        host.last_seq = record.seq
        what = unpack(record.what, HAPPENINGS)
        mesh = self.meshes[what.mesh]
        if isinstance(what, Prepared):
            mesh.prepared.add(record.host)
        elif isinstance(what, Refused):
            mesh.gone.update(mesh.plan.hosts)
            mesh.failed, mesh.cannot_start = True, what.error.message
            self._roll_back(now, what.error)
        elif isinstance(what, Notice):
            mesh.notices = [*mesh.notices[-9:], what.message]
        elif what.generation >= mesh.generation:
            if what.generation > mesh.generation:  # the journal lost the restart in between
                mesh.begin_generation(what.generation)
            self._generation_event(now, record.host, mesh, what)

    def _generation_event(
        self,
        now: float,
        host: str,
        mesh: Mesh,
        what: StoreOpened | StartFailed | RankStarted | RankExited | MeshGone,
    ) -> None:
        if isinstance(what, StoreOpened):
            mesh.port = what.port
        elif isinstance(what, RankStarted):
            rank = mesh.ranks[what.rank]
            rank.pid, rank.log, rank.state = what.pid, what.log, "running"
        elif isinstance(what, RankExited):
            rank = mesh.ranks[what.rank]
            rank.exit, rank.ended_at, rank.failed_at = what, now, now - what.failed_ago
            rank.state = "killed" if what.signal is not None else "exited"
            mesh.failed = mesh.failed or (mesh.stop is None and rank.failed)
        elif isinstance(what, MeshGone):
            mesh.gone.add(host)
            mesh.killed += what.killed
            mesh.unkillable.extend(what.unkillable)
        elif mesh.stop is None:
            mesh.failed, mesh.cannot_start, mesh.detail = True, what.message, what.detail
            if mesh.generation == 0:
                self._roll_back(now, Refusal(1, f"mesh {mesh.name} {what.message}"))

    def _roll_back(self, now: float, error: Refusal) -> None:
        """The launch cannot succeed: end all that was started."""
        if self.error is None:
            self.error = error
        if self.stop is None:
            self._stop_asked(now, StopAsked(None, FAILURE_GRACE, "a failed launch", error.code))

    # ------------------------------------------------------------ what follows

    def _settle(self, mesh: Mesh, now: float) -> None:
        """Move one mesh along as far as it goes."""
        if mesh.ended:
            return
        if mesh.ending:
            restart = mesh.failed and mesh.stop is None and mesh.may_restart(now)
            mesh.become("restarting" if restart and mesh.state != "stopping" else "stopping", now)
            if mesh.gone >= set(mesh.plan.hosts):
                self._end_generation(mesh, now)
            return
        if mesh.state == "pending" and self.leased:
            mesh.become("starting", now)
        if mesh.state == "restarting" and mesh.prepared >= set(mesh.plan.hosts):
            mesh.become("starting", now)
        if mesh.state == "starting" and all(r.pid is not None for r in mesh.ranks.values()):
            mesh.become("running", now)

    def _end_generation(self, mesh: Mesh, now: float) -> None:
        if mesh.state == "restarting":
            mesh.restarts.append(now)
            root = mesh.root_cause()
            mesh.last_failure = mesh.cannot_start or (root and describe(root, mesh)) or None
            mesh.begin_generation(mesh.generation + 1)
        elif mesh.done and mesh.stop is None:
            mesh.become("succeeded", now)
        elif mesh.failed and any(r.state == "lost" for r in mesh.ranks.values()):
            mesh.become("lost", now)
        elif mesh.failed:
            mesh.become("failed", now)
        else:
            mesh.become("succeeded" if mesh.done else "stopped", now)

    def _settle_run(self, now: float) -> None:
        meshes = list(self.meshes.values())
        self.leased = self.leased or all(m.prepared >= set(m.plan.hosts) for m in meshes)
        if self.leased:
            for mesh in meshes:
                self._settle(mesh, now)
        self.was_up = self.was_up or all(m.up or m.state in ENDED for m in meshes)
        deciding = [m for m in meshes if m.plan.kind == "driver"] or [m for m in meshes if m.plan.kind == "script"]
        if self.stop is None and deciding and all(m.ended for m in deciding):
            self._stop_asked(now, StopAsked(None, FAILURE_GRACE, "the end of its scripts"))
            for mesh in meshes:
                self._settle(mesh, now)
        if all(m.ended for m in meshes):
            if not self.ended:
                self.state, self.ended_at = self._verdict(meshes), now
        elif self.stop is not None:
            self.state = "stopping"
        elif self.was_up:
            self.state = "running"

    def _verdict(self, meshes: list[Mesh]) -> RunStateName:
        states = {m.state for m in meshes}
        if self.error is not None or "failed" in states:
            return "failed"
        if "lost" in states:
            return "lost"
        deciding = [m for m in meshes if m.plan.kind in ("driver", "script")]
        if deciding and all(m.state == "succeeded" for m in deciding):
            return "succeeded"
        return "stopped"

    @property
    def exit_code(self) -> int:
        """The exit code of a launch in the foreground: the failed workload's own, where there is one."""
        if self.stop is not None and self.stop.exit_code:
            return self.stop.exit_code
        for mesh in sorted(self.meshes.values(), key=lambda m: m.since):
            if mesh.state == "failed":
                return _workload_code(mesh.root_cause())
        if self.state == "lost":
            return 69
        return 0 if self.state in ("succeeded", "starting", "running") else 143


def _workload_code(rank: Rank | None) -> int:
    if rank is None or rank.exit is None:
        return 1
    return rank.exit.exit_code or 128 + (rank.exit.signal or 0)


def describe(rank: Rank, mesh: Mesh) -> str:
    """How a rank ended, in one sentence's length."""
    where = f"rank {rank.plan.rank} on {rank.plan.host}"
    report = rank.exit
    if report is None:
        return f"{where} was lost: {mesh.detail}" if rank.state == "lost" else f"{where} is {rank.state}"
    if report.oom:
        return f"{where} ran out of memory: {report.oom}"
    if report.signal is not None:
        try:
            name = Signals(report.signal).name
        except ValueError:
            name = f"signal {report.signal}"
        cause = f"{where} was killed by {name}"
    elif report.exit_code is None:
        cause = f"{where} ended unseen"
    else:
        cause = f"{where} exited with code {report.exit_code}"
    return f"{cause}: {report.error.splitlines()[-1]}" if report.error else cause
