"""Controller and agent, agent and followers: commands, events, and news of meshes."""

from __future__ import annotations

from dataclasses import field
from typing import TypeAlias

from forgectl.frozen import UNLESS_DEFAULT, dataclass
from forgectl.model.mesh_share import MeshShare
from forgectl.model.plan import ForkServerPlan, Gpu
from forgectl.model.status import FailureStatus, MeshStateName
from forgectl.stacks.evidence import RankEvidence
from forgectl.wire.envelope import Hello, Refusal


@dataclass(frozen=True)
class Membership:
    """The settings of a host's messenger for messages between the run's machines.

    `place` is the host's place (`messages.frames.Address`); the messenger listens at `address` ("": only at a Unix
    socket). `secret`, and `members` (place → public key), are CURVE keys. It has a link of its own to each place in
    `direct`; messages to others go through the launching machine. `driver` is the secret key with which the run's
    driver dials by itself; only the launching machine receives it.
    """

    place: str
    address: str
    secret: str = field(repr=False)
    members: dict[str, str]
    direct: tuple[str, ...]
    driver: str = field(default="", repr=False)


@dataclass(frozen=True)
class AgentConfig:
    """The configuration that an agent reads from standard input when it starts (never from a command line)."""

    version: str
    run: str
    host: str
    socket: str
    run_dir: str
    lease: float
    log_limit: int
    secrets: dict[str, str] = field(default_factory=dict)
    sweep: bool = True  # end what an earlier agent of this run and host may have left
    ahead: tuple[ForkServerPlan, ...] = ()  # fork servers to warm now, of meshes that will be prepared here
    place: str = ""  # of this machine in the run: "" is the launching machine
    messages: str = ""  # the folder of the sockets of actors' ranks; "": the agent finds one
    membership: Membership | None = None  # if actors of the run may be on several machines
    input: str = field(default="", metadata=UNLESS_DEFAULT)  # the socket that has the standard input of the one rank
    leaves: bool = False  # remove the run directory when the controller sends Quit: on ssh hosts it is temporary


@dataclass(frozen=True)
class Ping:
    """The last Pong (or Welcome) has arrived: the agent's lease starts again, from the time that was sent."""


@dataclass(frozen=True)
class Ack:
    """Events up to `seq` are in the controller's journal."""

    seq: int


@dataclass(frozen=True)
class Prepare:
    """Lease the mesh's GPUs on this host and start warming its fork server.

    `generation` is the mesh's first one; it differs from that of an ended mesh with the same name.
    """

    mesh: MeshShare
    generation: int = 0
    before: int = 0  # generations that the mesh had on other hosts, before `generation`


@dataclass(frozen=True)
class OpenStore:
    """Bind the rendezvous socket of a generation; sent only to the host of rank 0."""

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
    """Keep a messenger running; `generation` is the number of messengers that the host has lost."""

    generation: int


@dataclass(frozen=True)
class Tunnel:
    """A connection by ssh to the messenger of a host that cannot be dialled.

    `socket` is the messenger's Unix socket there, `root` forgectl's folder there.
    """

    host: str
    ssh: str
    python: str
    socket: str
    root: str = ""


@dataclass(frozen=True)
class Links:
    """The messengers that this host's messenger should dial: place → address (tcp://…), or tunnel by ssh.

    `generation` is the number of messengers that the run has lost.
    """

    generation: int
    dialled: dict[str, str]
    tunnels: dict[str, Tunnel] = field(default_factory=dict)


@dataclass(frozen=True)
class MeshNews:
    """The state of an actors' mesh, for every process with a handle of it: sent to agents, and by them to followers.

    `places` are those of its ranks. If it has ended or is ending: `reason`, and `failure` with its first failed rank.
    """

    mesh: str
    generation: int
    state: MeshStateName
    places: tuple[str, ...] = ()
    reason: str | None = None
    failure: FailureStatus | None = None


@dataclass(frozen=True)
class Stop:
    """End all processes of a generation here: SIGTERM, `grace` seconds, SIGKILL. Sent again, a lower grace applies.

    `by` asked for it; if nobody did, `failure` is why.
    """

    mesh: str
    generation: int
    grace: float
    by: str | None = None
    failure: FailureStatus | None = None


@dataclass(frozen=True)
class Release:
    """The mesh has ended: release its GPUs and its fork server. `generation` as in Prepare."""

    mesh: str
    generation: int = 0


@dataclass(frozen=True)
class GetStats:
    """Ask for a `Stats` with the current use of every rank."""


@dataclass(frozen=True)
class GetGpus:
    """Ask for HostGpus: the GPUs of the host with their present holders; `gpus` is as in the spec."""

    gpus: str | int | tuple[int, ...]


@dataclass(frozen=True)
class GetStacks:
    """Ask for Stacks: where these ranks are, mesh → ranks; `native`: with the frames of C code, by py-spy."""

    ranks: dict[str, tuple[int, ...]]
    native: bool = False


@dataclass(frozen=True)
class StandBy:
    """Ask for StandingBy: warm the fork servers of these shares, and lease these GPUs, without any rank."""

    shares: tuple[MeshShare, ...]
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class LogAt:
    """A position in a rank's log; `offset` in bytes from its beginning."""

    mesh: str
    generation: int
    rank: int
    offset: int


@dataclass(frozen=True)
class ReadLogs:
    """Ask for LogParts: the content of these logs from these positions on; waits up to `wait` seconds for some."""

    logs: tuple[LogAt, ...]
    wait: float = 0.0


@dataclass(frozen=True)
class Quit:
    """End all processes that are left, then the agent itself."""


@dataclass(frozen=True)
class Welcome:
    """An agent's answer to Hello; the events after `Hello.since` follow, then Synced."""

    version: str
    host: str
    pid: int
    boot_id: str


@dataclass(frozen=True)
class Synced:
    """All earlier events, or news, have been sent."""


@dataclass(frozen=True)
class Pong:
    """The answer to Ping."""


@dataclass(frozen=True)
class RankStats:
    """CPU use in percent of one core since the last GetStats, and resident memory in bytes.

    `still`: seconds since its last progress; None if it is not working, or shows no progress.
    """

    cpu_percent: float
    rss_bytes: int
    still: float | None = field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class Stats:
    """Mesh → rank → its processor and memory use."""

    meshes: dict[str, dict[int, RankStats]]


@dataclass(frozen=True)
class HostGpus:
    """The host's GPUs, in the order in which ranks should get them."""

    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class StandingBy:
    """All is warm and leased; else `why` it is not."""

    why: str = ""


@dataclass(frozen=True)
class Stacks:
    """Mesh → where those of its ranks are that were asked for and have not ended."""

    meshes: dict[str, tuple[RankEvidence, ...]]


@dataclass(frozen=True)
class LogPart:
    """A part of a log: `data` (base64) begins at `offset`, which is later than asked for if a hole was there.

    `times` (base64) are the samples of `system.log_times` that end from `at.offset` on to the end of `data`.
    """

    at: LogAt
    offset: int
    data: str
    size: int  # of the whole log, in bytes
    times: str = ""


@dataclass(frozen=True)
class LogParts:
    """A part of each log, of as many logs as fit in a message; `now` is the time by the host's clock."""

    parts: tuple[LogPart, ...]
    now: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """GPUs of this host are leased to the mesh; its fork server is warming."""

    mesh: str


@dataclass(frozen=True)
class Refused:
    """The mesh cannot run here: its GPUs are taken, or there is no such interpreter."""

    mesh: str
    error: Refusal


@dataclass(frozen=True)
class StoreOpened:
    """The rendezvous socket of a generation is bound and will be served."""

    mesh: str
    generation: int
    port: int


@dataclass(frozen=True)
class StartFailed:
    """A generation could not be started here; `detail` is a traceback or output, if any.

    `code` is the exit code of a launch that fails by it, `hint` says what to do.
    """

    mesh: str
    generation: int
    message: str
    detail: str = ""
    code: int = field(default=1, metadata=UNLESS_DEFAULT)
    hint: str | None = field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class MessengerOpened:
    """The host's messenger listens on `port` of the host's address (0: on none), and at the Unix socket `socket`."""

    generation: int
    port: int
    socket: str
    mesh: str = ""  # it belongs to the host, not to a mesh


@dataclass(frozen=True)
class MessengerGone:
    """The host's messenger has ended, or could not be started."""

    generation: int
    why: str
    mesh: str = ""


@dataclass(frozen=True)
class RankStarted:
    """A rank runs. `log` is its log file on that host; `start_time` is in clock ticks since boot."""

    mesh: str
    generation: int
    rank: int
    pid: int
    start_time: int
    log: str


@dataclass(frozen=True)
class RankExited:
    """A rank has ended.

    Exactly one of exit_code and signal is set; neither if nobody saw it end. `asked`: the agent had stopped it.
    `failed_ago`: seconds from its own failure (the time in its error file, else its end) to this report, so that the
    root cause can be found although hosts' clocks differ.
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
    """No process of the generation is left on this host, except those that even SIGKILL could not end."""

    mesh: str
    generation: int
    killed: int = 0  # how many needed SIGKILL
    unkillable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notice:
    """A message for the user that changes no state, such as log lines dropped from a full disk."""

    mesh: str
    message: str


@dataclass(frozen=True)
class ProgressStopped:
    """These ranks have made no progress for so long that they hang, the longest for `seconds`."""

    mesh: str
    generation: int
    ranks: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class ProgressResumed:
    """No rank of the mesh here hangs any more."""

    mesh: str
    generation: int


Happening: TypeAlias = (
    Prepared
    | Refused
    | StoreOpened
    | StartFailed
    | RankStarted
    | RankExited
    | MeshGone
    | Notice
    | ProgressStopped
    | ProgressResumed
    | MessengerOpened
    | MessengerGone
)


@dataclass(frozen=True)
class Event:
    """Something that happened on a host. Its agent numbers events from 1, and keeps and resends them until the Ack."""

    seq: int
    what: Happening


@dataclass(frozen=True)
class Follow:
    """The first line of a process that has handles; answered by MeshNews of all meshes, Synced, and later MeshNews."""

    version: str
    run: str


CONTROLLER_TO_AGENT = (
    *(Hello, Ping, Ack, Prepare, OpenStore, Start, Stop, Release, OpenMessenger, Links, MeshNews),
    *(GetStats, GetGpus, GetStacks, StandBy, ReadLogs, Quit),
)


AGENT_TO_CONTROLLER = (Welcome, Refusal, Synced, Pong, Stats, HostGpus, Stacks, StandingBy, LogParts, Event)


FOLLOWER_TO_AGENT = (Follow,)


AGENT_TO_FOLLOWER = (MeshNews, Synced)
