"""The messages between CLI, driver, controller and agent: typed dataclasses, one JSON object a line.

Each direction has a fixed table of messages; whatever else arrives is refused. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeAlias

from forgectl.codec import CodecError, from_json, to_json
from forgectl.frozen import dataclass
from forgectl.plan.model import ForkServerPlan, Gpu, MeshPlan, Unit

MAX_LINE = 4 * 1024 * 1024
"""Bytes that one message may take; a longer one ends the connection."""


class ProtocolError(Exception):
    """The other end said something that cannot be a message."""


@dataclass(frozen=True)
class Hello:
    """First line on any connection. A controller has events up to `since` of the agent with pid `of` in its journal."""

    version: str
    run: str
    since: int = 0
    of: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why the other end will not go on, as an error that a user can read."""

    code: int
    message: str
    hint: str | None = None


# ---------------------------------------------------------------- controller → agent


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

    mesh: MeshPlan
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
    state: str
    places: tuple[str, ...] = ()
    reason: str | None = None
    failure: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """The same in the form of a mesh's state in `status --json`."""
        return {"state": self.state, "reason": self.reason, "failure": self.failure}


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


# ---------------------------------------------------------------- agent → controller


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
    what: dict[str, Any]  # a Happening, packed: its type is among HAPPENINGS


# ---------------------------------------------------------------- follower → agent


@dataclass(frozen=True)
class Follow:
    """First line of a process that has handles: answered by MeshNews of all meshes, Synced, and what comes later."""

    version: str
    run: str


# ---------------------------------------------------------------- launching machine → relay on an ssh host, and back


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
class Target:
    """Where to dial; `key` names it in the answer."""

    key: str
    address: str
    port: int


@dataclass(frozen=True)
class DialOut:
    """Dial all of these at once."""

    targets: tuple[Target, ...]


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


# ---------------------------------------------------------------- launching machine → relay: the workdir, and back


@dataclass(frozen=True)
class Sync:
    """Make the host's tree `key` equal to a workdir, whose listing has this hash. Answered by SendListing or Wanted."""

    key: str
    digest: str


@dataclass(frozen=True)
class SendListing:
    """The listing is not known here."""


@dataclass(frozen=True)
class Listing:
    """Some entries of the workdir, numbered from 0 through all messages, folders before what they hold.

    Columns, of one length: see `forgectl.relay.entries.Entry`.
    """

    paths: tuple[str, ...]
    kinds: str
    sizes: tuple[int, ...]
    marks: tuple[str, ...]
    last: bool


@dataclass(frozen=True)
class Wanted:
    """Files, by number, whose content is not on the host."""

    files: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class Contents:
    """So many bytes of each of these files follow, end to end; GONE instead of a size for one that is there no more.

    `more`: the last file goes on in the next message. A file that comes again has changed meanwhile.
    """

    files: tuple[int, ...]
    sizes: tuple[int, ...]
    more: bool


GONE = -1


@dataclass(frozen=True)
class Sent:
    """That was all the content, or all that is worth sending after a Refusal."""


@dataclass(frozen=True)
class TreeSynced:
    """The tree is as listed, but for files (by number) that have changed since; `path` is where it is."""

    path: str
    deleted: int
    changed: tuple[int, ...]


# ---------------------------------------------------------------- launching machine → relay: forgectl check, and back


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


# ---------------------------------------------------------------- CLI → controller


@dataclass(frozen=True)
class GetStatus:
    """Ask for one StatusReport, with processor and memory use if `stats`."""

    stats: bool = False


@dataclass(frozen=True)
class Attach:
    """Stream a StatusReport at every change. An `owner` takes the run down with it when its connection ends."""

    owner: bool = False


@dataclass(frozen=True)
class FollowLogs:
    """Bring home what ranks of these meshes (None: all) write on ssh hosts, as long as this connection lasts."""

    meshes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BringLogs:
    """Bring home what ranks of these meshes have written on ssh hosts until now; answered by LogsHome."""

    meshes: tuple[str, ...]


@dataclass(frozen=True)
class Shutdown:
    """Stop these meshes (None: all, and the run with them); grace in seconds, 0 kills at once."""

    meshes: tuple[str, ...] | None
    grace: float
    by: str  # who asked, for the reason: "forgectl shutdown", "Ctrl-C"
    exit_code: int = 0  # what a foreground launch should end with


# ---------------------------------------------------------------- driver → controller


@dataclass(frozen=True)
class AddMesh:
    """Place and start one more mesh; answered by MeshAdded or Refusal. Not `named`: a number may follow its name."""

    unit: Unit
    named: bool


@dataclass(frozen=True)
class Report:
    """What became of a generation's actors: all have been set up, or one raised (`error`, with its traceback)."""

    mesh: str
    generation: int
    error: str | None = None
    traceback: str = ""


# ---------------------------------------------------------------- controller → CLI and driver


@dataclass(frozen=True)
class MeshAdded:
    """The name under which the mesh is now part of the run, and its first generation: a mesh before had the others."""

    mesh: str
    generation: int = 0


@dataclass(frozen=True)
class LogsHome:
    """The logs are in the run's directory; `without` are hosts that could not be asked."""

    without: tuple[str, ...] = ()


OVER = frozenset({"succeeded", "failed", "stopped", "lost"})
"""States of a mesh or run in a StatusReport that nothing follows."""


@dataclass(frozen=True)
class StatusReport:
    """One run, in the form that `forgectl status --json` prints."""

    run: dict[str, Any]
    ended: bool = False


# ---------------------------------------------------------------- CLI → driver, and back


@dataclass(frozen=True)
class Call:
    """Call an endpoint of a service, routed; `timeout` in seconds."""

    target: str
    endpoint: str
    args: list[Any]
    kwargs: dict[str, Any]
    timeout: float | None = None


@dataclass(frozen=True)
class GetMetrics:
    """Ask for the metrics of all services."""


@dataclass(frozen=True)
class Values:
    """What it gave, one value; what JSON cannot hold comes as its repr."""

    values: list[Any]


@dataclass(frozen=True)
class Metrics:
    """Service → its metrics."""

    services: dict[str, Any]


CONTROLLER_TO_AGENT = (
    *(Hello, Ping, Ack, Prepare, OpenStore, Start, Stop, Release, OpenMessenger, Links, MeshNews),
    *(GetStats, GetGpus, ReadLogs, Quit),
)
AGENT_TO_CONTROLLER = (Welcome, Refusal, Synced, Pong, Stats, HostGpus, LogParts, Event)
FOLLOWER_TO_AGENT = (Follow,)
AGENT_TO_FOLLOWER = (MeshNews, Synced)
LAUNCHER_TO_RELAY = (GetFacts, Examine, ListenOn, DialOut, StartAgent, ReachAgent)
RELAY_TO_LAUNCHER = (
    *(RelayReady, HostReport, Examination, Listening, Dialled, AgentStarted, AgentReached, NoAgent, Refusal),
)
SYNC_TO_RELAY = (Sync, Listing, Contents, Sent)
RELAY_TO_SYNC = (SendListing, Wanted, TreeSynced, Refusal)
CLI_TO_CONTROLLER = (Hello, GetStatus, Attach, FollowLogs, BringLogs, Shutdown, AddMesh, Report)
CONTROLLER_TO_CLI = (Hello, Refusal, StatusReport, LogsHome, MeshAdded)
CLI_TO_DRIVER = (Hello, Call, GetMetrics)
DRIVER_TO_CLI = (Hello, Refusal, Values, Metrics)
HAPPENINGS = (
    *(Prepared, Refused, StoreOpened, StartFailed, RankStarted, RankExited, MeshGone, Notice),
    *(MessengerOpened, MessengerGone),
)


def pack(message: Any) -> dict[str, Any]:
    """A message as a JSON object that names its type."""
    return {"type": type(message).__name__, **to_json(message)}


def unpack(data: Any, table: Sequence[type]) -> Any:
    """The message in a JSON object, if its type is in `table`; raises ProtocolError."""
    if not isinstance(data, dict):
        raise ProtocolError("a message is a JSON object")
    name = data.get("type")
    if not isinstance(name, str):
        raise ProtocolError("a message names its type")
    for kind in table:
        if kind.__name__ == name:
            try:
                return from_json(kind, {k: v for k, v in data.items() if k != "type"})
            except CodecError as e:
                raise ProtocolError(str(e)) from None
    raise ProtocolError(f"unknown message {name[:60]!r}")


def encode(message: Any) -> bytes:
    """A message as one line."""
    return json.dumps(pack(message), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes, table: Sequence[type]) -> Any:
    """The message on one line; raises ProtocolError."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"not JSON: {e}") from None
    return unpack(data, table)
