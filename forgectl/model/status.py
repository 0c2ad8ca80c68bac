"""The status of a run as `forgectl status --json` prints it: controllers send it, and it is kept after the run's end.

Fields are named and ordered as in that JSON. Times are UTC, such as `2026-11-22T20:00:00Z`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from forgectl.frozen import UNLESS_DEFAULT, dataclass
from forgectl.model.plan import MeshKind
from forgectl.wire.envelope import Refusal

MeshStateName = Literal[
    "pending", "starting", "running", "ready", "restarting",
    "stopping", "succeeded", "failed", "stopped", "lost",
]  # fmt: skip
RunStateName = Literal["starting", "running", "stopping", "succeeded", "failed", "stopped", "lost"]
RankStateName = Literal["starting", "running", "exited", "killed", "lost"]
HostStateName = Literal["starting", "up", "reconnecting", "lost", "gone"]
SpareName = Literal["warming", "warm", "cold"]
"""Whether a spare could take ranks at once; `cold`: something is in its way, and it would start as any other host."""
FailureKind = Literal[
    "exception", "exit", "signal", "out_of_memory", "hang", "host_lost", "lease", "time_limit", "not_started",
]  # fmt: skip
"""How something failed. exit: with a code and without an exception; lease: its host was out of reach for too long."""

OVER = frozenset({"succeeded", "failed", "stopped", "lost"})
"""Final states of a mesh or run."""


@dataclass(frozen=True)
class ControllerStatus:
    """A run's controller; `alive` is false in the status kept after the run's end."""

    pid: int
    alive: bool


@dataclass(frozen=True)
class HostStatus:
    """One host and its agent."""

    name: str
    state: HostStateName
    address: str
    last_seen: str | None
    agent_pid: int | None
    spare: SpareName | None = field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class RankStatus:
    """One rank of the current generation; `log` is its file on this machine, `cpu_percent` is percent of one core."""

    rank: int
    local_rank: int
    host: str
    pid: int | None
    state: RankStateName
    exit_code: int | None
    signal: int | None
    gpus: tuple[str, ...]
    cpu_percent: float | None
    rss_bytes: int | None
    log: str | None
    seconds_since_progress: float | None = None  # None: it does not work now, shows no progress, or was not asked

    @property
    def ended(self) -> bool:
        return self.state not in ("starting", "running")


@dataclass(frozen=True)
class CollateralStatus:
    """A rank that failed after the first one."""

    rank: int
    message: str


@dataclass(frozen=True)
class FailureStatus:
    """The rank that failed first. If the cause is no rank, as when nothing could start, `rank` and `host` are None."""

    rank: int | None
    host: str | None
    message: str
    traceback: str | None = None
    log_tail: tuple[str, ...] = ()
    log: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    collateral: tuple[CollateralStatus, ...] = ()  # not known for a generation that was restarted
    kind: FailureKind | None = field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class RestartStatus:
    """A restart under way, the `number`-th of its mesh. It waits so many seconds; `at`: until then."""

    number: int
    wait: float
    at: str | None  # None while processes of the failed generation are left, or where nothing is waited for


@dataclass(frozen=True)
class HangStatus:
    """A mesh that makes no progress; `verdict` is what its stacks and collectives say, line by line."""

    since: str  # when it was reported
    ranks: tuple[int, ...]
    message: str
    verdict: tuple[str, ...]


@dataclass(frozen=True)
class MeshStatus:
    """One mesh. `failure` is of its current generation, `last_failure` of the one before."""

    mesh: str
    kind: MeshKind
    state: MeshStateName
    since: str | None
    desired: int
    ready: int
    generation: int
    restarts: int
    max_restarts: int
    reason: str | None  # why it is in its state, in one line
    open: bool  # the driver may construct its actors
    error: Refusal | None
    failure: FailureStatus | None
    last_failure: FailureStatus | None
    notices: tuple[str, ...]
    unkillable: tuple[str, ...]
    ranks: tuple[RankStatus, ...]
    restarting: RestartStatus | None = field(default=None, metadata=UNLESS_DEFAULT)
    implicit: bool = field(default=False, metadata=UNLESS_DEFAULT)  # a driver that the spec does not have
    seconds_since_progress: float | None = None  # of the rank that has made none for longest
    hung: HangStatus | None = field(default=None, metadata=UNLESS_DEFAULT)

    @classmethod
    def lost(cls, name: str, reason: str) -> MeshStatus:
        """The status of an actor's mesh whose run is gone."""
        return cls(name, "actor", "lost", None, 0, 0, 0, 0, 0, reason, False, None, None, None, (), (), ())

    @property
    def ended(self) -> bool:
        return self.state in OVER

    @property
    def up(self) -> bool:
        return self.state in ("running", "ready")

    @property
    def exit_code(self) -> int:
        """The code of its root cause if it failed (128 + signal), 69 if it was lost, 143 if it was stopped, else 0."""
        if self.state == "failed":
            failure = self.failure
            return (failure and (failure.exit_code or (failure.signal and 128 + failure.signal))) or 1
        return {"lost": 69, "stopped": 143}.get(self.state, 0)


@dataclass(frozen=True)
class ReplicaStatus:
    """The recent requests of one replica of a service. Latencies are in seconds, or None if it answered nothing."""

    index: int
    mesh: str
    healthy: bool
    ended: str | None  # why it will never be up again
    active: int
    queued: int
    sessions: int
    total: int
    successes: int
    failures: int
    cancelled: int
    requests_per_second: float
    latency_mean: float | None
    latency_p50: float | None
    latency_p99: float | None


@dataclass(frozen=True)
class ServiceStatus:
    """The same for a whole service."""

    service: str
    active: int
    queued: int
    sessions: int
    total: int
    successes: int
    failures: int
    cancelled: int
    requests_per_second: float
    latency_mean: float | None
    latency_p50: float | None
    latency_p99: float | None
    replicas: tuple[ReplicaStatus, ...]


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    run: str
    name: str
    state: RunStateName
    spec: str
    started_at: str
    ended_at: str | None
    exit_code: int | None
    error: Refusal | None
    stopped_by: str | None
    was_up: bool
    controller: ControllerStatus
    run_dir: str
    lease: float
    hosts: tuple[HostStatus, ...]
    meshes: tuple[MeshStatus, ...]
    services: dict[str, ServiceStatus] | None = None  # None: the driver was not asked

    @property
    def ended(self) -> bool:
        return self.state in OVER

    def mesh(self, name: str) -> MeshStatus:
        """Its mesh of that name."""
        return next(m for m in self.meshes if m.mesh == name)
