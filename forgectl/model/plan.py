"""What a plan says: every rank with its host, GPUs and environment. Pure data, standard library only.

The same objects are printed by `forgectl plan` and stored in the run's directory; hosts are sent their shares of them.
"""

from __future__ import annotations

import functools
from dataclasses import field
from typing import Any, Literal

from forgectl.frozen import dataclass

MeshKind = Literal["actor", "service", "script", "driver"]
StartMethod = Literal["fork", "spawn"]
SyncKind = Literal["content", "none"]

MAX_RANKS = 4096
"""Of a run: the messages about all of them must fit a line of the protocol."""
LEASE = 30.0
"""Seconds that agents live on without a controller, where the spec says nothing."""
LOG_LIMIT = 2 << 30
"""Bytes that one rank's log may take on disk, where the spec says nothing."""
SYNC_LIMIT = 1 << 30
"""Bytes of workdir that may be copied to ssh hosts, where the spec says nothing."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host.

    `visible` is what CUDA_VISIBLE_DEVICES must say for it (an index in PCI order, or a MIG UUID);
    `uuid` names it for leases and is the same for every run and user of the machine;
    `holder` says who has it now, in words, or is None where it is free.
    """

    visible: str
    uuid: str
    name: str = ""
    holder: str | None = None


@dataclass(frozen=True)
class HostFacts:
    """What planning has to know about a host. Hosts with the same `machine` share its cores and GPUs.

    Hosts with the same `network` reach each other on 127.0.0.1; where it is "", those with the same `machine`.
    """

    name: str
    machine: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    declared_gpus: bool = False  # GPUs were named by the spec, not found by NVML
    network: str = ""
    root: str = ""  # forgectl's folder there
    workdir: str = ""  # where the run's workdir is there; "": as on the launching machine
    addresses: tuple[str, ...] = ()  # where other hosts may reach it, the likeliest first


@dataclass(frozen=True)
class HostPlan:
    """One host of the run and how it is reached."""

    name: str
    local: bool
    python: str
    address: str  # where other hosts of the run reach it; 127.0.0.1 while all are one machine
    ssh: str | None = None
    env: dict[str, str] | None = None
    gpus: str | int | tuple[int, ...] = "auto"  # as the spec has it
    cores: int = 1
    slots: int | None = None  # at most so many ranks without GPUs, and so many of its GPUs
    root: str = ""  # forgectl's folder there
    workdir: str = ""  # where the run's workdir is there; "": as in the plan
    reaches: tuple[str, ...] = ()  # hosts that were dialled from here at their address, with success

    @property
    def place(self) -> str:
        """Which machine it is among those that messages pass between: "" is the launching one."""
        return "" if self.local else self.name


@dataclass(frozen=True)
class Program:
    """What each rank of a mesh runs.

    file: a Python file, `target` its path; module: as `python -m target`; command: any program, `target`
    looked up in PATH; actor: `target` is module:Class (its constructor arguments are the driver's business);
    resident: a driver without a script, which serves `forgectl call`.
    """

    kind: Literal["file", "module", "command", "actor", "resident"]
    target: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class RestartPolicy:
    """Restart the whole mesh at most `max` times `within` so many seconds (None: ever)."""

    max: int = 0
    within: float | None = None


SERVICE_RESTART = RestartPolicy(3, 600.0)
"""Of a service's replicas, where nobody says otherwise."""


@dataclass(frozen=True)
class Unit:
    """One mesh as the spec, or code, asks for it. `hosts`: these, in this order; so many; or as few as have room."""

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


@dataclass(frozen=True)
class Declaration:
    """An actor or a service of the spec: what the driver makes of its meshes.

    `target` is module:Class, `args` its keyword arguments; `settings` what a service has besides its meshes.
    """

    name: str
    kind: Literal["actor", "service"]
    target: str
    meshes: tuple[str, ...]
    args: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class RankPlan:
    """One process of a mesh. `env` holds what differs from rank to rank and is known before launch."""

    rank: int
    local_rank: int
    host: str
    gpus: tuple[str, ...]  # this rank's own GPUs, as CUDA_VISIBLE_DEVICES would name them
    env: dict[str, str]


@dataclass(frozen=True)
class MeshForm:
    """A mesh plan as JSON has it: flat, with what is the unit's among what follows from its place.

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


@dataclass(frozen=True)
class MeshPlan:
    """A unit that has a place: its ranks over `hosts`, in the order of their group ranks.

    The unit is kept whole, so that the mesh can be placed anew when it loses a host. `env` is common to all ranks of a
    host and is what its fork server starts with, by host name. `secrets` are names whose values agents were given apart
    from the plan. `gpus` are leased per host for the whole mesh.
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
        """The plan as JSON has it."""
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
        )

    @classmethod
    def from_form(cls, form: MeshForm) -> MeshPlan:
        """The plan that has this form: the ranks and the GPUs say how many, and whether, the unit asked for."""
        unit = Unit(
            mesh=form.mesh,
            kind=form.kind,
            program=form.program,
            procs=len(form.ranks),
            hosts=form.wish,
            with_gpus=any(form.gpus.values()),
            env=form.own_env,
            python=form.unit_python,
            preload=form.preload,
            start_method=form.start_method,
            restart=form.restart,
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
        """Whether its ranks end only when told to: those of actors."""
        return self.program.kind == "actor"

    @property
    def procs(self) -> int:
        """World size: the number of ranks in all."""
        return self.unit.procs

    def ranks_on(self, host: str) -> tuple[RankPlan, ...]:
        """The ranks of this mesh on one host, by local rank."""
        return self.by_host.get(host, ())

    @functools.cached_property
    def by_host(self) -> dict[str, tuple[RankPlan, ...]]:
        """The ranks of each host. Asked for at every event of every host: so it is made once."""
        found: dict[str, list[RankPlan]] = {name: [] for name in self.hosts}
        for rank in self.ranks:
            found.setdefault(rank.host, []).append(rank)
        return {name: tuple(ranks) for name, ranks in found.items()}


@dataclass(frozen=True)
class ForkServerPlan:
    """A fork server of a host, shared by all meshes for which it would be the same.

    `env`: variables besides those of the host's agent, secrets among them. `python` as the spec has it.
    """

    python: str
    workdir: str
    preload: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """A whole run before it has an id. `lease` in seconds.

    `env` is the spec's, for meshes that code adds later. An `open` run begins without meshes: the Python process
    that owns it adds them, and ends it.
    """

    name: str
    spec: str  # path of the spec file, or "" for one made on the spot
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
    sync_limit: int = SYNC_LIMIT  # bytes of it that may be copied

    @property
    def may_grow(self) -> bool:
        """Whether code may add meshes: a driver's, or that of the process which an open run belongs to."""
        return self.open or any(m.kind == "driver" for m in self.meshes)

    def mesh(self, name: str) -> MeshPlan:
        """The mesh of that name; KeyError where there is none."""
        for mesh in self.meshes:
            if mesh.mesh == name:
                return mesh
        raise KeyError(name)
