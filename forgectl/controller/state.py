"""The states of a run's meshes, ranks and hosts, and the changes that are allowed.

    pending ─▶ starting ─▶ running ─▶ stopping ─▶ succeeded | failed | stopped | lost
                  ▲            │
                  └─ restarting ◀─ (a failure that `restart:` allows for, or `forgectl restart`)

A mesh of actors becomes `ready` instead of `running`, once the driver has reported that `setup` returned on every rank.
A mesh leaves `stopping` and `restarting` only when every host has reported that no process of the generation is left,
and `restarting` not before the wait of controller/backoff.py is over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from forgectl.controller import backoff
from forgectl.controller.records import Diagnosed, RestartAsked, StopAsked
from forgectl.controller.repetition import Fall
from forgectl.model.plan import HostPlan, MeshPlan, RankPlan
from forgectl.model.status import OVER, HostStateName, MeshStateName, RankStateName
from forgectl.protocol.supervision import MeshNews, MessengerOpened, ProgressStopped, RankExited, RankStarted
from forgectl.system.processes import signal_name
from forgectl.system.times import show_duration
from forgectl.wire.envelope import Refusal

UNSEEN_SECONDS = 2.0
"""Time in which the death of a rank is reported after others have lost their connections to it."""
_LOST_A_PEER = re.compile(r"Connection (?:closed|reset) by (?:remote )?peer|Broken pipe|ncclRemoteError")

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

MOST_TEXT = 2000
"""Most characters kept of one message of an agent: a status report must fit one message on the wire."""
MOST_UNKILLABLE = 100
"""Most processes in a mesh's state that even SIGKILL did not end."""
MOST_REPORTS = 100
MOST_REPORTS_PER_RANK = 64
"""Most notices and failures to start that a host may report in one generation. A log that is trimmed again and again is
reported each time its loss has doubled."""

FAILURE_GRACE = 10.0
LEFTOVER_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL: for the other ranks of a failed mesh, and for what finished ranks left."""


@dataclass
class RankState:
    """One rank of the current generation. Times are unix times."""

    plan: RankPlan
    stays: bool = False  # it should run until the agent ends it
    state: RankStateName = "starting"
    pid: int | None = None
    log: str | None = None
    exit: RankExited | None = None
    ended_at: float | None = None
    failed_at: float | None = None  # by its own error file; the earliest is the root cause, the others are collateral
    lost_by: str = ""  # why its host was lost
    lease: bool = False  # its host was out of reach for longer than its lease

    @property
    def failed(self) -> bool:
        """Whether it was lost, or ended badly by itself rather than on command."""
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
    before: int = 0  # generations that it had on other hosts
    lost: set[str] = field(default_factory=set)  # hosts of its plan that were lost since its generation began
    needs_hosts: bool = False  # a host of its plan is lost: the next generation needs another plan
    left: dict[str, int] = field(default_factory=dict)  # host it was moved away from → first generation there
    ranks: dict[int, RankState] = field(default_factory=dict)
    unstarted: set[int] = field(default_factory=set)  # ranks that have not been reported as started
    unfinished: set[int] = field(default_factory=set)  # ranks that have not ended with exit code 0
    prepared: set[str] = field(default_factory=set)  # hosts that have leased its GPUs
    gone: set[str] = field(default_factory=set)  # hosts where no process of the generation is left
    set_up: bool = False  # the driver has reported that `setup` returned on every rank
    added: bool = False  # by code, during the run
    claim: str = ""  # by which a later driver adopts it; see AddMesh
    terms: dict[str, str] | None = None
    orphan: bool = False  # its driver has ended, and the next one has not adopted it yet
    port: int | None = None
    stop: StopAsked | None = None
    again: RestartAsked | None = None  # somebody wants the next generation
    failed: bool = False
    cannot_start: str | None = None  # why the generation could not be started at all
    error: Refusal | None = None  # the same, as an error for the caller that asked for the mesh
    hopeless: bool = False  # an agent refused it, or no hosts are left: no restart would help
    detail: str = ""  # the traceback for `cannot_start`, if there is one
    restarts: list[float] = field(default_factory=list)
    judged: int = -1  # the last generation after whose failure a restart was decided
    in_a_row: int = 0  # restarts since it was last up for long
    wait: float = 0.0  # seconds that the restart under way waits once the failed generation is gone
    due: float | None = None  # when that wait is over
    fall: Fall | None = None  # where the generation fell soon after its start
    fell_before: Fall | None = None  # the same of the generation before, unless somebody asked for this one
    repeated: str | None = None  # why another generation would fail at the same place as the last two
    ran_at: float | None = None  # when the first rank of the generation was reported as started
    begun_at: float | None = None  # when it first began to start; its time limit counts from then
    time_up: bool = False  # it has reached its time limit
    hung: dict[str, ProgressStopped] = field(default_factory=dict)  # host → its ranks that hang
    hung_at: float = 0.0  # when the first of them was reported
    diagnosed: Diagnosed | None = None  # of those
    ended_by_hang: bool = False  # its `hang:` ends this generation
    killed: int = 0
    unkillable: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    report_counts: dict[str, int] = field(default_factory=dict)  # host → its notices and failures to start
    last_failure: str | None = None  # why the previous generation ended
    last_root_cause: RankState | None = None  # the first failed rank of the previous generation
    news: tuple[tuple[int, str], MeshNews] | None = None  # the latest news, with its generation and state

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
        """Whether its processes should end, for any reason."""
        return not self.ended and (self.stop is not None or self.again is not None or self.failed or self.done)

    @property
    def done(self) -> bool:
        """Whether every rank has exited with 0 by itself."""
        return not self.plan.stays and not self.unfinished

    @property
    def cause(self) -> str | None:
        """Why it failed, if that is not the failure of a rank."""
        limit = self.plan.unit.time_limit
        if self.time_up and limit:
            return f"time limit of {show_duration(limit)}"
        return self.diagnosed.message if self.ended_by_hang and self.diagnosed else self.cannot_start

    @property
    def to_diagnose(self) -> bool:
        """Whether its ranks hang, and were not looked at yet."""
        return bool(self.hung) and self.diagnosed is None and not (self.ended or self.ending)

    @property
    def has_begun(self) -> bool:
        """Whether any rank of this generation has been started."""
        return len(self.unstarted) < len(self.ranks)

    def covers(self, hosts: set[str]) -> bool:
        """Whether these are all hosts of its plan."""
        return hosts >= self.plan.by_host.keys()

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL for processes that should end now."""
        if self.stop is not None:
            return self.stop.grace
        if self.again is not None:
            return self.again.grace
        return FAILURE_GRACE if self.failed else LEFTOVER_GRACE

    def may_report(self, host: str) -> bool:
        """Whether a host may report one more notice or failure to start; unlimited, it could send them for ever."""
        most = MOST_REPORTS + MOST_REPORTS_PER_RANK * len(self.plan.ranks_on(host))
        return self.report_counts.get(host, 0) < most

    def rank_started(self, what: RankStarted, now: float) -> None:
        """Note that a rank runs."""
        self.ran_at = now if self.ran_at is None else self.ran_at
        rank = self.ranks[what.rank]
        rank.pid, rank.log, rank.state = what.pid, what.log, "running"
        self.unstarted.discard(what.rank)

    def rank_exited(self, what: RankExited, now: float) -> None:
        """Note that a rank has ended."""
        rank = self.ranks[what.rank]
        rank.exit, rank.ended_at, rank.failed_at = what, now, now - what.failed_ago
        rank.state = "killed" if what.signal is not None else "exited"
        self.failed = self.failed or (self.stop is None and self.again is None and rank.failed)
        if what.exit_code == 0:
            self.unfinished.discard(what.rank)

    def lose_ranks(self, host: str, now: float, why: str, *, lease: bool = False) -> None:
        """Mark the ranks of a host as lost, as its agent is gone. Ranks that had ended before stay as they are.

        If the agent ended ranks without a command, it fenced itself: those count as lost, too.
        """
        fenced = not self.ending
        here = (self.ranks[r.rank] for r in self.plan.ranks_on(host))
        lost = [r for r in here if r.exit is None or (fenced and r.exit.asked)]
        for rank in lost:
            rank.state, rank.exit, rank.ended_at, rank.failed_at, rank.lost_by = "lost", None, now, now, why
            rank.lease = lease
            self.unfinished.add(rank.plan.rank)
        self.failed = self.failed or bool(lost)

    def progress_stopped(self, host: str, what: ProgressStopped, now: float) -> None:
        """Note that ranks of a host hang."""
        self.hung_at = self.hung_at if self.hung else now
        self.hung[host] = what

    def progress_resumed(self, host: str) -> None:
        """Note that those of a host do not hang any more."""
        self.hung.pop(host, None)
        if not self.hung and not self.ended_by_hang:
            self.diagnosed = None

    def root_cause(self) -> RankState | None:
        """The rank that failed first; None if none did."""
        return first_failed(self.ranks.values())

    def collateral(self) -> list[RankState]:
        """Ranks that failed after the first, most likely because of it."""
        root = self.root_cause()
        return [r for r in self.ranks.values() if r.failed and r is not root]

    @property
    def may_be_asked_to_restart(self) -> bool:
        """Whether it may get a new generation on demand. A driver may not: it made the other meshes."""
        begun = self.again is not None or self.state in ("starting", "running", "ready")
        return (begun or self.due is not None) and self.stop is None and self.plan.kind != "driver"

    @property
    def may_try_again(self) -> bool:
        """Whether another generation need not fail in the same way."""
        never_came_up = self.cannot_start and not self.set_up and self.generation == self.first
        return not (self.time_up or self.hopeless or never_came_up)

    def has_restarts_left(self, now: float) -> bool:
        """Whether `restart:` allows for one more generation by its number."""
        policy = self.plan.restart
        recent = [t for t in self.restarts if policy.within is None or now - t < policy.within]
        return len(recent) < policy.max

    def decide_wait(self, now: float) -> None:
        """Note how long to wait before the restart that follows the failure of this generation."""
        if self.judged == self.generation:
            return
        policy = self.plan.restart
        if self.up and now - self.since >= backoff.healthy_after(policy.backoff):
            self.in_a_row = 0
        self.wait = backoff.wait_before(policy.backoff, self.in_a_row)
        self.judged = self.generation
        self.in_a_row += 1

    def become(self, state: MeshStateName, now: float) -> None:
        """Change the state, along MESH_TRANSITIONS only."""
        if state == self.state:
            return
        if state not in MESH_TRANSITIONS[self.state]:
            raise AssertionError(f"mesh {self.name}: {self.state} cannot become {state}")
        self.state, self.since = state, now
        if state == "starting" and self.begun_at is None:
            self.begun_at = now

    def begin_generation(self, number: int) -> None:
        """Forget the processes of the previous generation."""
        self.generation = number
        self.ranks = {r.rank: RankState(r, self.plan.stays) for r in self.plan.ranks}
        self.unstarted, self.unfinished = set(self.ranks), set(self.ranks)
        self.gone = set()
        self.report_counts = {}
        self.set_up = False
        self.port = None
        self.again = None
        self.failed = False
        self.cannot_start = None
        self.error = None
        self.detail = ""
        self.hung = {}
        self.diagnosed = None
        self.ended_by_hang = False
        self.fell_before, self.fall, self.repeated, self.ran_at = self.fall, None, None, None


@dataclass
class HostState:
    """One host and its agent."""

    plan: HostPlan
    state: HostStateName = "starting"
    pid: int | None = None
    boot_id: str | None = None
    given_up: bool = False  # no agent can be started there
    spare: bool = False  # kept for meshes that lose a host, and none has come yet
    standing_by: str | None = None  # why a spare is not ready; "" if it is, None while it warms
    messenger: MessengerOpened | None = None  # where actors are on several machines
    messengers_lost: int = 0
    last_seq: int = 0
    last_seen: float | None = None


def first_failed(ranks: Iterable[RankState]) -> RankState | None:
    """The rank that failed first: the root cause.

    A rank that lost its connection to another one counts as the later of the two: the kernel closes the sockets of a
    process that dies before its parent learns of its end, and long before where it has to give back a GPU.
    """
    failed = [r for r in ranks if r.failed]
    return min(failed, key=lambda r: ((r.failed_at or 0.0) + _lag(r), r.plan.rank), default=None)


def _lag(rank: RankState) -> float:
    lost_a_peer = rank.exit and rank.exit.error and _LOST_A_PEER.search(rank.exit.error)
    return UNSEEN_SECONDS if lost_a_peer else 0.0


def describe(rank: RankState) -> str:
    """How a rank ended, in one sentence."""
    where = f"rank {rank.plan.rank} on {rank.plan.host}"
    report = rank.exit
    if report is None:
        return f"{where} was lost: {rank.lost_by}" if rank.state == "lost" else f"{where} is {rank.state}"
    if report.oom:
        return f"{where} ran out of memory: {report.oom[:MOST_TEXT]}"
    if report.asked and report.error:  # we ended it, but it had failed before; its exit is our doing
        return f"{where} raised {_last_line(report.error)}"
    if report.signal is not None:
        cause = f"{where} was killed by {signal_name(report.signal)}"
    elif report.exit_code is None:
        cause = f"{where} ended unseen"
    else:
        cause = f"{where} exited with code {report.exit_code}"
    return f"{cause}: {_last_line(report.error)}" if report.error else cause


def _last_line(text: str) -> str:
    lines = text.splitlines()
    return lines[-1][:MOST_TEXT] if lines else ""
