"""Controller and agent, and who follows an agent: commands, events, and what becomes of meshes."""

from __future__ import annotations

from dataclasses import field
from typing import TypeAlias

from forgectl.frozen import dataclass
from forgectl.model.mesh_share import MeshShare
from forgectl.model.plan import ForkServerPlan, Gpu
from forgectl.model.status import FailureStatus, MeshStateName
from forgectl.wire.envelope import Hello, Refusal


@dataclass(frozen=True)
class Membership:
    """How a host's messenger takes part in the messages between the run's machines.

    `place` is the host's among messengers (`messages.frames.Address`), `address` where it listens ("": nowhere but in
    its folder). `secret` and the public keys in `members`, by place, are CURVE keys. `direct` are places that it has a
    link of its own with; messages to others go by the launching machine. `driver` is the secret key with which a run's
    driver dials by itself; only the launching machine is told.
    """

    place: str
    address: str
    secret: str = field(repr=False)
    members: dict[str, str]
    direct: tuple[str, ...]
    driver: str = field(default="", repr=False)


@dataclass(frozen=True)
class AgentConfig:
    """What an agent is told on its standard input when it starts (never on a command line)."""

    version: str
    run: str
    host: str
    socket: str
    run_dir: str
    lease: float
    log_limit: int
    secrets: dict[str, str] = field(default_factory=dict)
    sweep: bool = True  # end what an earlier agent of this run and host may have left
    ahead: tuple[ForkServerPlan, ...] = ()  # of meshes that will be prepared here: they may get warm at once
    place: str = ""  # among the machines of the run: "" is the launching one
    messages: str = ""  # the folder of the sockets of actors' ranks; "": the agent finds one
    membership: Membership | None = None  # where actors of the run may be on several machines
    leaves: bool = False  # its run directory is a guest on an ssh host, and goes when the agent is told to quit


@dataclass(frozen=True)
class Ping:
    """Says that the last Pong (or Welcome) has arrived: the agent's lease runs anew, from when that was sent."""


@dataclass(frozen=True)
class Ack:
    """Events up to `seq` are in the controller's journal."""

    seq: int


@dataclass(frozen=True)
class Prepare:
    """Lease the mesh's GPUs on this host and start warming its fork server.

    `generation` is its first one, which tells it from an ended mesh that had its name.
    """

    mesh: MeshShare
    generation: int = 0
    before: int = 0  # how many it had on other hosts, before that first one


@dataclass(frozen=True)
class OpenStore:
    """Bind the rendezvous socket of a generation; only to the host of rank 0."""

    mesh: str
    generation: int
    address: str


@dataclass(frozen=True)
class Start:
    """Fork this host's ranks of a generation."""

    mesh: str
    generation: int
    master_addr: str
    master_port: int


@dataclass(frozen=True)
class OpenMessenger:
    """Have a messenger run; `generation` counts those that the host has lost."""

    generation: int


@dataclass(frozen=True)
class Tunnel:
    """A way through ssh to the messenger of a host that cannot be dialled: `socket` is its Unix socket there.

    `root` is forgectl's folder there.
    """

    host: str
    ssh: str
    python: str
    socket: str
    root: str = ""


@dataclass(frozen=True)
class Links:
    """Which messengers this host's is to dial: place → address (tcp://…), and those that it reaches through ssh.

    `generation` counts the messengers that the run has lost.
    """

    generation: int
    dialled: dict[str, str]
    tunnels: dict[str, Tunnel] = field(default_factory=dict)


@dataclass(frozen=True)
class MeshNews:
    """What became of an actors' mesh, for whoever has a handle of it: to agents, and from them to their followers.

    `places` are those of its ranks. If it has ended or is ending: `reason`, and what its first failed rank was.
    """

    mesh: str
    generation: int
    state: MeshStateName
    places: tuple[str, ...] = ()
    reason: str | None = None
    failure: FailureStatus | None = None


@dataclass(frozen=True)
class Stop:
    """End all that a generation started here: SIGTERM, `grace` seconds, SIGKILL. A lower grace hurries."""

    mesh: str
    generation: int
    grace: float


@dataclass(frozen=True)
class Release:
    """The mesh is over: give its GPUs back and let its fork server go. `generation` as in Prepare."""

    mesh: str
    generation: int = 0


@dataclass(frozen=True)
class GetStats:
    """Ask for a `Stats` with the current use of every rank."""


@dataclass(frozen=True)
class GetGpus:
    """Ask for HostGpus: the GPUs of the host, `gpus` as the spec has it, with their holders of this moment."""

    gpus: str | int | tuple[int, ...]


@dataclass(frozen=True)
class LogAt:
    """A place in a rank's log: bytes from its beginning."""

    mesh: str
    generation: int
    rank: int
    offset: int


@dataclass(frozen=True)
class ReadLogs:
    """Ask for LogParts: what these logs have from there on; without news after `wait` seconds."""

    logs: tuple[LogAt, ...]
    wait: float = 0.0


@dataclass(frozen=True)
class Quit:
    """End everything that is left, then yourself."""


@dataclass(frozen=True)
class Welcome:
    """An agent's answer to Hello; the events after `Hello.since` follow, then Synced."""

    version: str
    host: str
    pid: int
    boot_id: str


@dataclass(frozen=True)
class Synced:
    """All that happened before is told."""


@dataclass(frozen=True)
class Pong:
    """The answer to Ping."""


@dataclass(frozen=True)
class RankStats:
    """CPU in percent of one core since the last question, resident memory in bytes."""

    cpu_percent: float
    rss_bytes: int


@dataclass(frozen=True)
class Stats:
    """Mesh → rank → its use."""

    meshes: dict[str, dict[int, RankStats]]


@dataclass(frozen=True)
class HostGpus:
    """The host's GPUs, in the order in which ranks should get them."""

    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class LogPart:
    """A part of a log: `data` (base64) begins at `offset`, beyond what was asked for where the log has a hole."""

    at: LogAt
    offset: int
    data: str
    size: int  # of the whole log, in bytes


@dataclass(frozen=True)
class LogParts:
    """A part of each log; of further ones than fit, nothing."""

    parts: tuple[LogPart, ...]


@dataclass(frozen=True)
class Prepared:
    """GPUs of this host are leased to the mesh; its fork server is warming."""

    mesh: str


@dataclass(frozen=True)
class Refused:
    """The mesh cannot run here: GPUs taken, no such interpreter."""

    mesh: str
    error: Refusal


@dataclass(frozen=True)
class StoreOpened:
    """Rendezvous of a generation is bound and will be served."""

    mesh: str
    generation: int
    port: int


@dataclass(frozen=True)
class StartFailed:
    """A generation could not be started here; `detail` is a traceback or output, where there is one."""

    mesh: str
    generation: int
    message: str
    detail: str = ""


@dataclass(frozen=True)
class MessengerOpened:
    """The host's messenger listens: on a port of the host's address (0: on none), and at `socket`."""

    generation: int
    port: int
    socket: str
    mesh: str = ""  # of the host, not of a mesh


@dataclass(frozen=True)
class MessengerGone:
    """The host's messenger has ended, or could not be started."""

    generation: int
    why: str
    mesh: str = ""


@dataclass(frozen=True)
class RankStarted:
    """A rank runs. `log` is its log file on that host; `start_time` in clock ticks since boot."""

    mesh: str
    generation: int
    rank: int
    pid: int
    start_time: int
    log: str


@dataclass(frozen=True)
class RankExited:
    """A rank is gone.

    Exactly one of exit_code and signal is set, or neither where its end was not seen. `asked`: a Stop had been
    sent to it before. `failed_ago`: seconds between its own failure (by its error file, else its end) and this
    report, so that the first cause can be told from the others although hosts' clocks differ.
    """

    mesh: str
    generation: int
    rank: int
    exit_code: int | None
    signal: int | None
    asked: bool = False
    oom: str | None = None
    error: str | None = None
    traceback: str | None = None
    log_tail: tuple[str, ...] = ()
    failed_ago: float = 0.0


@dataclass(frozen=True)
class MeshGone:
    """No process of the generation is left on this host, but those that even SIGKILL could not end."""

    mesh: str
    generation: int
    killed: int = 0  # how many needed SIGKILL
    unkillable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notice:
    """Something worth telling that changes no state, such as log lines dropped from a full disk."""

    mesh: str
    message: str


Happening: TypeAlias = (
    Prepared
    | Refused
    | StoreOpened
    | StartFailed
    | RankStarted
    | RankExited
    | MeshGone
    | Notice
    | MessengerOpened
    | MessengerGone
)


@dataclass(frozen=True)
class Event:
    """Something that happened on a host. Numbered from 1 by its agent, kept and replayed until acknowledged."""

    seq: int
    what: Happening


@dataclass(frozen=True)
class Follow:
    """First line of a process that has handles: answered by MeshNews of all meshes, Synced, and what comes later."""

    version: str
    run: str


CONTROLLER_TO_AGENT = (
    *(Hello, Ping, Ack, Prepare, OpenStore, Start, Stop, Release, OpenMessenger, Links, MeshNews),
    *(GetStats, GetGpus, ReadLogs, Quit),
)


AGENT_TO_CONTROLLER = (Welcome, Refusal, Synced, Pong, Stats, HostGpus, LogParts, Event)


FOLLOWER_TO_AGENT = (Follow,)


AGENT_TO_FOLLOWER = (MeshNews, Synced)
