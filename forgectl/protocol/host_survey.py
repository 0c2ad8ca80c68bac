"""The launching machine and the relay on an ssh host: questions about the host, and ways to its agent."""

from __future__ import annotations

from dataclasses import field

from forgectl.frozen import dataclass
from forgectl.model.plan import HostFacts
from forgectl.protocol.supervision import AgentConfig
from forgectl.wire.envelope import Refusal


@dataclass(frozen=True)
class RelayReady:
    """A relay's first message."""

    version: str
    pid: int


@dataclass(frozen=True)
class GetFacts:
    """Ask for a HostReport. `gpus` is as in the spec; the host's interpreter should have `modules`."""

    host: str
    gpus: str | int | tuple[int, ...]
    look_for_gpus: bool
    modules: tuple[str, ...] = ()
    folder: str = ""  # a workdir that should exist there, on a shared file system


@dataclass(frozen=True)
class HostReport:
    """What planning needs to know about an ssh host."""

    facts: HostFacts
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
    """Target's key → why it did not answer; None if it did."""

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
    """Connect this stream to the agent that listens at `socket`; answered by AgentReached, or by NoAgent."""

    socket: str


@dataclass(frozen=True)
class AgentReached:
    """All later bytes of this connection go to and come from the agent."""

    pid: int


@dataclass(frozen=True)
class NoAgent:
    """Nobody listens there."""


@dataclass(frozen=True)
class Examine:
    """Ask for an Examination. `gpus` is as in the spec; `workdir` is "" if the host will get a copy.

    `python` is the host's own interpreter, if another one answers; `pythons` are those that meshes name besides.
    """

    host: str
    gpus: str | int | tuple[int, ...]
    workdir: str = ""
    python: str = ""
    pythons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interpreter:
    """A Python and its packages: pip's name → version, or None if it is not installed.

    CUDA and NCCL, which come with torch, are among them. `error` says why the interpreter could not be run.
    """

    executable: str = ""
    version: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU, in bytes."""

    uuid: str
    total: int
    used: int


@dataclass(frozen=True)
class Space:
    """The file system of `path`, in bytes (0 if not known); `there` says whether the path itself exists."""

    path: str
    total: int
    free: int
    there: bool = True


@dataclass(frozen=True)
class Examination:
    """What can be known about a host before anything is launched on it."""

    received: float  # the host's clock when it was asked
    hostname: str
    kernel: str
    facts: HostFacts
    interpreters: dict[str, Interpreter]  # by the name in the question; "" is the host's own
    memory: int  # bytes
    memory_available: int
    disks: tuple[Space, ...]  # of forgectl's folder, and of workdir
    shm: Space | None
    limits: dict[str, tuple[int, ...]]  # ulimit → soft, hard; -1: none
    cgroup: bool  # whether the host's agent may make cgroups (v2)
    driver: str = ""  # NVIDIA's version
    nvml: bool = True  # whether the host's own Python can query that driver, if there is one
    gpu_memory: tuple[GpuMemory, ...] = ()
    no_such_gpu: str | None = None
    answered: float = 0.0  # the host's clock when it answered


LAUNCHER_TO_RELAY = (GetFacts, Examine, ListenOn, DialOut, StartAgent, ReachAgent)


RELAY_TO_LAUNCHER = (
    *(RelayReady, HostReport, Examination, Listening, Dialled, AgentStarted, AgentReached, NoAgent, Refusal),
)
