"""A plan: every rank with its host, GPUs and environment. Pure data, standard library only.

`forgectl plan` prints these objects, the run's directory stores them, and hosts receive their shares of them.
"""

from __future__ import annotations

import functools
from dataclasses import field
from typing import Any, Literal, get_args

from forgectl.frozen import UNLESS_DEFAULT, dataclass

HangAction = Literal["report", "restart", "nothing"]
MeshKind = Literal["actor", "service", "script", "driver"]
StartMethod = Literal["fork", "spawn"]
SyncKind = Literal["content", "none"]
OnFailure = Literal["stop", "continue"]
RestartCause = Literal["crash", "hang", "host_lost", "oom"]

MAX_RANKS = 4096
"""Ranks of one run: a message about all of them must fit a line of the protocol."""
LEASE = 30.0
"""Seconds that agents live on without a controller, by default."""
LOG_LIMIT = 2 << 30
"""Bytes that one rank's log may take on disk, by default."""
PRELOAD = ("torch?",)
"""What fork servers import once, by default; a module with `?` only where it is installed."""
SYNC_LIMIT = 1 << 30
"""Bytes of workdir that may be copied to ssh hosts, by default."""
HANG_AFTER, HANG_START = 600.0, 1800.0
"""Seconds without progress after which a rank hangs, by default: later, and before its first progress."""
BACKOFF = 1.0
"""Seconds before the second of several restarts in a row, by default."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host.

    `visible` is what CUDA_VISIBLE_DEVICES must say for it (an index in PCI order, or a MIG UUID);
    `uuid` names it for leases and is the same for every run and user of the machine;
    `holder` describes in words who uses it now; None if it is free.
    """

    visible: str
    uuid: str
    name: str = ""
    holder: str | None = None


MOST_GPUS = 1024
MOST_GPU_TEXT = 1000
"""Most GPUs of one host, and characters of what it says of one."""


def impossible_gpus(gpus: tuple[Gpu, ...]) -> str | None:
    """Why no host has these GPUs; None if one may."""
    if len(gpus) > MOST_GPUS:
        return f"it has {len(gpus)} GPUs"
    for gpu in gpus:
        words = (gpu.visible, gpu.uuid, gpu.name, gpu.holder or "")
        if sum(map(len, words)) > MOST_GPU_TEXT or not all(map(str.isprintable, words)) or "," in gpu.visible:
            return f"it has a GPU {gpu.visible[:80]!r}"
    return None


@dataclass(frozen=True)
class HostFacts:
    """What planning needs to know about a host. Hosts with the same `machine` share its cores and GPUs.

    Hosts with the same `network` reach each other on 127.0.0.1; if it is "", those with the same `machine` do.
    """

    name: str
    machine: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    declared_gpus: bool = False  # GPUs were named by the spec, not found by NVML
    network: str = ""
    root: str = ""  # forgectl's folder there
    workdir: str = ""  # the path of the run's workdir there; "": as on the launching machine
    addresses: tuple[str, ...] = ()  # at which other hosts may reach it, the likeliest first


@dataclass(frozen=True)
class HostPlan:
    """One host of the run and how it is reached."""

    name: str
    local: bool
    python: str
    address: str  # at which other hosts of the run reach it; 127.0.0.1 if all are one machine
    ssh: str | None = None
    env: dict[str, str] | None = None
    gpus: str | int | tuple[int, ...] = "auto"  # as the spec has it
    cores: int = 1
    slots: int | None = None  # limit of its ranks without GPUs, and limit of its GPUs in use
    root: str = ""  # forgectl's folder there
    workdir: str = ""  # the path of the run's workdir there; "": as in the plan
    reaches: tuple[str, ...] = ()  # hosts that it dialled at their address with success

    @property
    def place(self) -> str:
        """Its machine's place in message addresses: "" is the launching machine."""
        return "" if self.local else self.name


@dataclass(frozen=True)
class Program:
    """What each rank of a mesh runs.

    file: a Python file, `target` is its path from workdir; module: as `python -m target`; command: any program,
    `target` is looked up in PATH; actor: `target` is module:Class (the driver has its constructor arguments);
    resident: a driver without a script, which serves `forgectl call`.
    """

    kind: Literal["file", "module", "command", "actor", "resident"]
    target: str
    args: tuple[str, ...] = ()


RESTART_CAUSES: tuple[RestartCause, ...] = get_args(RestartCause)


@dataclass(frozen=True)
class RestartPolicy:
    """Restart the whole mesh at most `max` times within `within` seconds (None: in all).

    The first restart is at once. Of further ones in a row the second waits `backoff` seconds, and each one after it
    twice as long as the one before: see `controller/backoff.py`. `on` are the causes for which it is restarted.
    """

    max: int = 0
    within: float | None = None
    backoff: float = field(default=BACKOFF, metadata=UNLESS_DEFAULT)
    on: tuple[RestartCause, ...] = field(default=RESTART_CAUSES, metadata=UNLESS_DEFAULT)


SERVICE_RESTART = RestartPolicy(3, 600.0)
"""The default for replicas of a service."""


@dataclass(frozen=True)
class HangPolicy:
    """When a rank of a mesh hangs, in seconds without progress, and what is done then: see `agent/progress.py`.

    `start` is the bound before its first progress. If it is None, HANG_START bounds it, and ranks that give no sign
    of work are left alone. `logs`: the lines of its log are progress, too.
    """

    after: float = HANG_AFTER
    start: float | None = None
    do: HangAction = "report"
    logs: bool = False


@dataclass(frozen=True)
class Unit:
    """One mesh as the spec or code asks for it, before it has a place.

    `hosts`: these hosts, in this order; or this many; or None: as few as have room. `share_gpus_with` is another mesh:
    it uses GPUs of that one, and none of its own. `time_limit`: seconds until it has failed, restarts included.
    """

    mesh: str
    kind: MeshKind
    program: Program
    procs: int
    hosts: tuple[str, ...] | int | None
    with_gpus: bool
    env: dict[str, str]
    python: str | None
    preload: tuple[str, ...]
    start_method: StartMethod
    restart: RestartPolicy
    share_gpus_with: str | None = None
    time_limit: float | None = None
    hang: HangPolicy = HangPolicy()


@dataclass(frozen=True)
class Declaration:
    """An actor or a service of the spec, which the driver creates on its meshes.

    `target` is module:Class, `args` are its keyword arguments; `settings` are a service's settings besides its meshes.
    """

    name: str
    kind: Literal["actor", "service"]
    target: str
    meshes: tuple[str, ...]
    args: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class RankPlan:
    """One process of a mesh. `env` has the variables that differ between ranks and are known before launch."""

    rank: int
    local_rank: int
    host: str
    gpus: tuple[str, ...]  # this rank's own GPUs, as CUDA_VISIBLE_DEVICES would name them
    env: dict[str, str]


@dataclass(frozen=True)
class MeshForm:
    """The JSON form of a mesh plan: flat, with the unit's fields among those of its placement.

    `wish`, `own_env` and `unit_python` are the unit's `hosts`, `env` and `python`.
    """

    mesh: str
    kind: MeshKind
    program: Program
    workdir: str
    hosts: tuple[str, ...]
    ranks: tuple[RankPlan, ...]
    env: dict[str, dict[str, str]]
    gpus: dict[str, tuple[Gpu, ...]]
    python: dict[str, str]
    preload: tuple[str, ...] = ("torch",)
    start_method: StartMethod = "fork"
    restart: RestartPolicy = RestartPolicy()
    secrets: tuple[str, ...] = ()
    wish: tuple[str, ...] | int | None = None
    own_env: dict[str, str] = field(default_factory=dict)
    unit_python: str | None = None
    share_gpus_with: str | None = field(default=None, metadata=UNLESS_DEFAULT)
    time_limit: float | None = field(default=None, metadata=UNLESS_DEFAULT)
    hang: HangPolicy = field(default=HangPolicy(), metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class MeshPlan:
    """A placed unit: its ranks over `hosts`, in the order of their group ranks.

    It keeps the unit, so that the mesh can be placed again when it loses a host. `env`, by host name, is common to all
    ranks of a host; their fork server starts with it. `secrets` are names; agents receive the values separately.
    `gpus` are leased per host for the whole mesh, together with the meshes of the run that share them.
    """

    FORM = MeshForm
    unit: Unit
    workdir: str
    hosts: tuple[str, ...]
    ranks: tuple[RankPlan, ...]
    env: dict[str, dict[str, str]]
    gpus: dict[str, tuple[Gpu, ...]]
    python: dict[str, str]
    secrets: tuple[str, ...] = ()

    def to_form(self) -> MeshForm:
        """The form in which JSON has the plan."""
        unit = self.unit
        return MeshForm(
            mesh=unit.mesh,
            kind=unit.kind,
            program=unit.program,
            workdir=self.workdir,
            hosts=self.hosts,
            ranks=self.ranks,
            env=self.env,
            gpus=self.gpus,
            python=self.python,
            preload=unit.preload,
            start_method=unit.start_method,
            restart=unit.restart,
            secrets=self.secrets,
            wish=unit.hosts,
            own_env=unit.env,
            unit_python=unit.python,
            share_gpus_with=unit.share_gpus_with,
            time_limit=unit.time_limit,
            hang=unit.hang,
        )

    @classmethod
    def from_form(cls, form: MeshForm) -> MeshPlan:
        """The plan that has this form; its ranks give the unit's `procs`, its GPUs `with_gpus`."""
        unit = Unit(
            mesh=form.mesh,
            kind=form.kind,
            program=form.program,
            procs=len(form.ranks),
            hosts=form.wish,
            with_gpus=any(form.gpus.values()) and form.share_gpus_with is None,
            env=form.own_env,
            python=form.unit_python,
            preload=form.preload,
            start_method=form.start_method,
            restart=form.restart,
            share_gpus_with=form.share_gpus_with,
            time_limit=form.time_limit,
            hang=form.hang,
        )
        return cls(unit, form.workdir, form.hosts, form.ranks, form.env, form.gpus, form.python, form.secrets)

    @property
    def mesh(self) -> str:
        """Its name."""
        return self.unit.mesh

    @property
    def kind(self) -> MeshKind:
        return self.unit.kind

    @property
    def program(self) -> Program:
        return self.unit.program

    @property
    def preload(self) -> tuple[str, ...]:
        return self.unit.preload

    @property
    def start_method(self) -> StartMethod:
        return self.unit.start_method

    @property
    def restart(self) -> RestartPolicy:
        return self.unit.restart

    @property
    def stays(self) -> bool:
        """Whether its ranks run until they are stopped, as those of actors do."""
        return self.program.kind == "actor"

    @property
    def is_asked(self) -> bool:
        """Whether processes of the run send it requests: actors, and the driver."""
        return self.stays or self.kind == "driver"

    @property
    def may_move(self) -> bool:
        """Whether it may run on other hosts than now: the driver may not, nor may a mesh that names its hosts."""
        return self.kind != "driver" and not isinstance(self.unit.hosts, tuple)

    @property
    def procs(self) -> int:
        """World size: the number of all ranks."""
        return self.unit.procs

    def ranks_on(self, host: str) -> tuple[RankPlan, ...]:
        """The ranks of this mesh on one host, by local rank."""
        return self.by_host.get(host, ())

    @functools.cached_property
    def by_host(self) -> dict[str, tuple[RankPlan, ...]]:
        """The ranks of each host. Cached, because every event of every host needs it."""
        found: dict[str, list[RankPlan]] = {name: [] for name in self.hosts}
        for rank in self.ranks:
            found.setdefault(rank.host, []).append(rank)
        return {name: tuple(ranks) for name, ranks in found.items()}


@dataclass(frozen=True)
class ForkServerPlan:
    """A fork server of a host; all meshes with an equal plan share it.

    `env` has the variables besides those of the host's agent, including secrets. `python` is as in the spec.
    """

    python: str
    workdir: str
    preload: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HookPlan:
    """Commands for events, by name (`model.event.HookName`), as their words; each may take `timeout` seconds."""

    commands: dict[str, tuple[str, ...]]
    folder: str  # where they start
    timeout: float


HOOK_SECONDS = 30.0
"""What the command of an event may take, by default."""


@dataclass(frozen=True)
class Plan:
    """A whole run before it has an id. `lease` is in seconds.

    `env` is the spec's, for meshes that code adds later. An `open` run begins without meshes: the Python process that
    owns it adds them, and ends the run. `on_failure`: whether the first mesh that has failed for good ends the run;
    None: a script of a launch in the foreground does.
    """

    name: str
    spec: str  # path of the spec file, or "" if there is no file
    workdir: str
    lease: float
    log_limit: int  # bytes that one rank's log may take on disk
    hosts: tuple[HostPlan, ...]
    meshes: tuple[MeshPlan, ...]
    secrets: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    declared: tuple[Declaration, ...] = ()
    open: bool = False
    sync: SyncKind = "content"  # how ssh hosts get workdir
    sync_limit: int = SYNC_LIMIT  # bytes of workdir that may be copied
    on_failure: OnFailure | None = field(default=None, metadata=UNLESS_DEFAULT)
    on: HookPlan | None = field(default=None, metadata=UNLESS_DEFAULT)
    spares: tuple[str, ...] = field(default=(), metadata=UNLESS_DEFAULT)  # hosts without ranks, for one that is lost
    lends_input: bool = field(default=False, metadata=UNLESS_DEFAULT)  # to its one rank, see cli/lent_input.py

    @property
    def may_grow(self) -> bool:
        """Whether code may add meshes: the driver's, or that of the process that owns an open run."""
        return self.open or any(m.kind == "driver" for m in self.meshes)

    def mesh(self, name: str) -> MeshPlan:
        """The mesh of that name; raises KeyError."""
        for mesh in self.meshes:
            if mesh.mesh == name:
                return mesh
        raise KeyError(name)
