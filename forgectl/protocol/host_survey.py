"""The launching machine and the relay on an ssh host: what hosts are asked, and agents there."""

from __future__ import annotations

from dataclasses import field

from forgectl.frozen import dataclass
from forgectl.model.plan import Gpu
from forgectl.protocol.supervision import AgentConfig
from forgectl.wire.envelope import Refusal


@dataclass(frozen=True)
class RelayReady:
    """A relay's first message."""

    version: str
    pid: int


@dataclass(frozen=True)
class GetFacts:
    """Ask for a HostReport. `gpus` as the spec has it; `modules` are what the host's interpreter should have."""

    host: str
    gpus: str | int | tuple[int, ...]
    look_for_gpus: bool
    modules: tuple[str, ...] = ()
    folder: str = ""  # a workdir that should be there, on a shared file system


@dataclass(frozen=True)
class HostReport:
    """What planning has to know of an ssh host. Hosts of one `network` reach each other on 127.0.0.1."""

    hostname: str
    python: str
    root: str  # the folder of all that forgectl keeps on that host
    boot_id: str
    network: str
    cores: int
    addresses: tuple[str, ...]  # where others may reach it, the likeliest first
    gpus: tuple[Gpu, ...] = ()
    declared_gpus: bool = False
    no_such_gpu: str | None = None
    no_such_folder: bool = False
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListenOn:
    """Listen on a free port of each address that is the host's own, until the relay ends or listens elsewhere."""

    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Listening:
    """Address → port."""

    ports: dict[str, int]


@dataclass(frozen=True)
class DialTarget:
    """Where to dial; `key` names it in the answer."""

    key: str
    address: str
    port: int


@dataclass(frozen=True)
class DialOut:
    """Dial all of these at once."""

    targets: tuple[DialTarget, ...]


@dataclass(frozen=True)
class Dialled:
    """Target's key → why it did not answer; None where it did."""

    results: dict[str, str | None]


@dataclass(frozen=True)
class StartAgent:
    """Start the run's agent on this host; answered by AgentStarted once it listens, or by Refusal."""

    config: AgentConfig


@dataclass(frozen=True)
class AgentStarted:
    """The agent listens."""

    pid: int


@dataclass(frozen=True)
class ReachAgent:
    """Become a pipe to the agent that listens at `socket`, after the answer AgentReached; or say NoAgent."""

    socket: str


@dataclass(frozen=True)
class AgentReached:
    """From here on the connection is the agent's."""

    pid: int


@dataclass(frozen=True)
class NoAgent:
    """Nobody listens there."""


@dataclass(frozen=True)
class Examine:
    """Ask for an Examination. `gpus` as the spec has it; `workdir` "" where the host is to get a copy.

    `python`: the host's own interpreter, where that is not the one which answers; `pythons`: what else meshes name.
    """

    host: str
    gpus: str | int | tuple[int, ...]
    workdir: str = ""
    python: str = ""
    pythons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interpreter:
    """A Python and what it has installed: what pip calls it → version, None where it is not there.

    CUDA and NCCL, which come with torch, are among them. `error` says why it cannot be asked.
    """

    executable: str = ""
    version: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU, by its uuid."""

    uuid: str
    total: int
    used: int


@dataclass(frozen=True)
class Space:
    """The file system of `path`, in bytes (0 if it cannot be told); `there`: whether the path itself exists."""

    path: str
    total: int
    free: int
    there: bool = True


@dataclass(frozen=True)
class Examination:
    """What there is to know of a host before anything is launched on it."""

    received: float  # the host's clock when it was asked
    hostname: str
    kernel: str
    boot_id: str
    network: str  # as in HostReport
    addresses: tuple[str, ...]
    root: str
    interpreters: dict[str, Interpreter]  # as they were asked for; "" is the host's own
    cores: int
    memory: int  # bytes
    memory_available: int
    disks: tuple[Space, ...]  # of what forgectl keeps there, and of workdir
    shm: Space | None
    limits: dict[str, tuple[int, ...]]  # ulimit → soft, hard; -1: none
    cgroup: bool  # whether the host's agent may make cgroups (v2)
    driver: str = ""  # NVIDIA's version
    nvml: bool = True  # whether the host's own Python can ask that driver, if there is one
    gpus: tuple[Gpu, ...] = ()
    declared_gpus: bool = False
    gpu_memory: tuple[GpuMemory, ...] = ()
    no_such_gpu: str | None = None
    answered: float = 0.0  # the host's clock when all of this was known


LAUNCHER_TO_RELAY = (GetFacts, Examine, ListenOn, DialOut, StartAgent, ReachAgent)


RELAY_TO_LAUNCHER = (
    *(RelayReady, HostReport, Examination, Listening, Dialled, AgentStarted, AgentReached, NoAgent, Refusal),
)
