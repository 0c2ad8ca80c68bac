"""The states of a run's meshes, ranks and hosts, and the changes that are allowed.

    pending ─▶ starting ─▶ running ─▶ stopping ─▶ succeeded | failed | stopped | lost
                  ▲            │
                  └─ restarting ◀─ (a failure that `restart:` allows for)

An actor's mesh is `ready` instead of `running`, once the driver has reported that `setup` returned on every rank.
A mesh leaves `stopping` and `restarting` only when every host has said that nothing of the generation is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from signal import Signals

from forgectl.controller.records import StopAsked
from forgectl.model.plan import HostPlan, MeshPlan, RankPlan
from forgectl.model.status import OVER, HostStateName, MeshStateName, RankStateName
from forgectl.protocol.supervision import MeshNews, MessengerOpened, RankExited, RankStarted
from forgectl.wire.envelope import Refusal

MESH_TRANSITIONS: dict[MeshStateName, tuple[MeshStateName, ...]] = {
    "pending": ("starting", "restarting", "stopping", "failed", "stopped", "lost"),
    "starting": ("running", "ready", "stopping", "restarting", "failed", "stopped", "lost"),
    "running": ("stopping", "restarting", "succeeded", "failed", "stopped", "lost"),
    "ready": ("stopping", "restarting", "succeeded", "failed", "stopped", "lost"),
    "restarting": ("starting", "stopping", "failed", "stopped", "lost"),
    "stopping": ("succeeded", "failed", "stopped", "lost"),
    "succeeded": (),
    "failed": (),
    "stopped": (),
    "lost": (),
}
"""The allowed changes of a mesh's state."""

MOST_SAID = 2000
"""Characters of one sentence of an agent's that are kept: a status report must fit one message."""
MOST_UNKILLABLE = 100
"""Processes of a mesh that are named in its state, where not even SIGKILL ended them."""
MOST_TOLD = 100
MOST_TOLD_PER_RANK = 64
"""Notices, and failures to start, of one generation that a host may report. A log that is trimmed again and again is
reported each time that its loss has doubled."""

FAILURE_GRACE = 10.0
LEFTOVER_GRACE = 5.0
"""Seconds that the other ranks of a failed mesh, or what finished ranks left behind, have after SIGTERM."""


@dataclass
class RankState:
    """One rank of the current generation. Times are unix times."""

    plan: RankPlan
    stays: bool = False  # it ends only when told to
    state: RankStateName = "starting"
    pid: int | None = None
    log: str | None = None
    exit: RankExited | None = None
    ended_at: float | None = None
    failed_at: float | None = None  # when it failed, by its own error file; later than others it is collateral
    lost_by: str = ""  # why its host was lost

    @property
    def failed(self) -> bool:
        """Whether it ended badly by itself, not because it was told to."""
        if self.state == "lost":
            return True
        if self.exit is None or (self.exit.exit_code == 0 and not self.stays):
            return False
        return not self.exit.asked or bool(self.exit.error)


@dataclass
class MeshState:
    """One mesh and its current generation."""

    plan: MeshPlan
    state: MeshStateName = "pending"
    since: float = 0.0
    generation: int = 0
    first: int = 0  # its first generation on these hosts
    before: int = 0  # generations that it had on others
    homeless: bool = False  # a host of its plan is lost: the next generation needs another plan
    left: dict[str, int] = field(default_factory=dict)  # host it was moved away from → first generation there
    ranks: dict[int, RankState] = field(default_factory=dict)
    unstarted: set[int] = field(default_factory=set)  # ranks that have not been reported as started
    unfinished: set[int] = field(default_factory=set)  # ranks that have not ended with exit code 0
    prepared: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    set_up: bool = False  # the driver has reported that the actors are
    added: bool = False  # by code, while the run went on
    port: int | None = None
    stop: StopAsked | None = None
    failed: bool = False
    cannot_start: str | None = None  # why the generation could not be started at all
    error: Refusal | None = None  # the same, for whoever asked for the mesh
    hopeless: bool = False  # an agent will not have it: no restart would help
    detail: str = ""  # the traceback of that, where there is one
    restarts: list[float] = field(default_factory=list)
    killed: int = 0
    unkillable: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)  # host → what it has reported that it might report for ever
    last_failure: str | None = None  # what made the generation before this one end
    fallen: RankState | None = None  # its first failed rank
    news: tuple[tuple[int, str], MeshNews] | None = None  # the last that was made, and of which generation and state

    @property
    def name(self) -> str:
        return self.plan.mesh

    @property
    def ended(self) -> bool:
        return self.state in OVER

    @property
    def up(self) -> bool:
        return self.state in ("running", "ready")

    @property
    def open(self) -> bool:
        """Whether the driver may construct this actor's ranks: all of them run."""
        return self.state == "starting" and self.plan.stays and not self.unstarted

    @property
    def ending(self) -> bool:
        """Whether its processes are to end, for whatever reason."""
        return not self.ended and (self.stop is not None or self.failed or self.done)

    @property
    def done(self) -> bool:
        """Whether every rank has come to a good end by itself."""
        return not self.plan.stays and not self.unfinished

    @property
    def has_begun(self) -> bool:
        """Whether any rank of this generation has been started."""
        return len(self.unstarted) < len(self.ranks)

    def covers(self, hosts: set[str]) -> bool:
        """Whether these are all hosts of its plan."""
        return hosts >= self.plan.by_host.keys()

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL for what is to end now."""
        if self.stop is not None:
            return self.stop.grace
        return FAILURE_GRACE if self.failed else LEFTOVER_GRACE

    def may_tell(self, host: str) -> bool:
        """Whether a host may report one more of what changes nothing, which it could go on with for ever."""
        return self.told.get(host, 0) < MOST_TOLD + MOST_TOLD_PER_RANK * len(self.plan.ranks_on(host))

    def rank_started(self, what: RankStarted) -> None:
        """One more rank runs."""
        rank = self.ranks[what.rank]
        rank.pid, rank.log, rank.state = what.pid, what.log, "running"
        self.unstarted.discard(what.rank)

    def rank_exited(self, what: RankExited, now: float) -> None:
        """A rank has ended."""
        rank = self.ranks[what.rank]
        rank.exit, rank.ended_at, rank.failed_at = what, now, now - what.failed_ago
        rank.state = "killed" if what.signal is not None else "exited"
        self.failed = self.failed or (self.stop is None and rank.failed)
        if what.exit_code == 0:
            self.unfinished.discard(what.rank)

    def lose_ranks(self, host: str, now: float, why: str) -> None:
        """The agent of a host is gone, and its ranks with it. What had ended before keeps its end.

        What an agent ended without being told to, it ended to fence itself: that is lost, too.
        """
        fenced = not self.ending
        here = (self.ranks[r.rank] for r in self.plan.ranks_on(host))
        lost = [r for r in here if r.exit is None or (fenced and r.exit.asked)]
        for rank in lost:
            rank.state, rank.exit, rank.ended_at, rank.failed_at, rank.lost_by = "lost", None, now, now, why
            self.unfinished.add(rank.plan.rank)
        self.failed = self.failed or bool(lost)

    def root_cause(self) -> RankState | None:
        """The rank that failed first; the others of `collateral()` fell with it."""
        failed = [r for r in self.ranks.values() if r.failed]
        return min(failed, key=lambda r: (r.failed_at or 0.0, r.plan.rank), default=None)

    def collateral(self) -> list[RankState]:
        """Ranks that failed after the first, most likely because of it."""
        root = self.root_cause()
        return [r for r in self.ranks.values() if r.failed and r is not root]

    def may_restart(self, now: float) -> bool:
        """Whether `restart:` allows for one more generation."""
        policy = self.plan.restart
        if self.hopeless or (self.cannot_start and not self.set_up and self.generation == self.first):
            return False  # it would not get any further
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
        self.ranks = {r.rank: RankState(r, self.plan.stays) for r in self.plan.ranks}
        self.unstarted, self.unfinished = set(self.ranks), set(self.ranks)
        self.gone = set()
        self.told = {}
        self.set_up = False
        self.port = None
        self.failed = False
        self.cannot_start = None
        self.error = None
        self.detail = ""


@dataclass
class HostState:
    """One host and its agent."""

    plan: HostPlan
    state: HostStateName = "starting"
    pid: int | None = None
    boot_id: str | None = None
    given_up: bool = False  # no agent can be started there
    messenger: MessengerOpened | None = None  # where actors are on several machines
    messengers_lost: int = 0
    last_seq: int = 0
    last_seen: float | None = None


def describe(rank: RankState) -> str:
    """How a rank ended, in one sentence's length."""
    where = f"rank {rank.plan.rank} on {rank.plan.host}"
    report = rank.exit
    if report is None:
        return f"{where} was lost: {rank.lost_by}" if rank.state == "lost" else f"{where} is {rank.state}"
    if report.oom:
        return f"{where} ran out of memory: {report.oom[:MOST_SAID]}"
    if report.asked and report.error:  # we ended it, but it had failed before: the rest is our doing
        return f"{where} raised {_last_line(report.error)}"
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
    return f"{cause}: {_last_line(report.error)}" if report.error else cause


def _last_line(text: str) -> str:
    lines = text.splitlines()
    return lines[-1][:MOST_SAID] if lines else ""
