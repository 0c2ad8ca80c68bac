"""The records of a run's journal. The whole state of the run follows from them: replaying them restores it."""

from __future__ import annotations

from dataclasses import field
from typing import Any, TypeAlias

from forgectl.frozen import UNLESS_DEFAULT, dataclass
from forgectl.model.plan import MeshPlan
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import Happening
from forgectl.system.processes import Identity
from forgectl.wire.codec import from_tagged, to_tagged


@dataclass(frozen=True)
class Born:
    """A controller with process id `pid` began the run, or took it over (`adopted`). The run ends with its `owner`.

    `rebuilt`: the journal was damaged, so agents send all events that they keep.
    """

    pid: int
    adopted: bool = False
    rebuilt: bool = False
    owner: Identity | None = None


@dataclass(frozen=True)
class AgentUp:
    """An agent answers on the host. A new pid means a new agent, which knows nothing of the meshes."""

    host: str
    pid: int
    boot_id: str


@dataclass(frozen=True)
class AgentLost:
    """The host's agent is gone, and all that it ran ended with it. `final`: no other agent replaces it.

    `code` and `hint` are for the error that the user sees. `lease`: it was out of reach for longer than its lease.
    """

    host: str
    why: str
    code: int = 69
    hint: str | None = None
    final: bool = False
    lease: bool = field(default=False, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class Happened:
    """Event number `seq` of a host's agent."""

    host: str
    seq: int
    what: Happening


@dataclass(frozen=True)
class StopAsked:
    """Somebody wants these meshes (None: the whole run) to end; grace in seconds."""

    meshes: tuple[str, ...] | None
    grace: float
    by: str
    exit_code: int = 0


@dataclass(frozen=True)
class RestartAsked:
    """Somebody wants the next generation of these meshes (mesh → the generation to end); grace in seconds."""

    meshes: dict[str, int]
    grace: float
    by: str


@dataclass(frozen=True)
class Added:
    """The driver's code asked for one more mesh; `claim` and `terms` as in AddMesh."""

    plan: MeshPlan
    claim: str = field(default="", metadata=UNLESS_DEFAULT)
    terms: dict[str, str] | None = field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class Adopted:
    """The driver's code launched again what an earlier driver had launched, and has that mesh from now on."""

    mesh: str


@dataclass(frozen=True)
class Moved:
    """A mesh that lost a host has a plan on other hosts for its next generation."""

    plan: MeshPlan


@dataclass(frozen=True)
class Stranded:
    """A mesh that lost a host cannot be placed on others."""

    mesh: str
    why: str


@dataclass(frozen=True)
class Waited:
    """The wait before this generation of a mesh is over."""

    mesh: str
    generation: int


@dataclass(frozen=True)
class TimeUp:
    """The mesh has reached its `time_limit`."""

    mesh: str


@dataclass(frozen=True)
class Diagnosed:
    """The ranks of a hung mesh were looked at. `message` says in one line that it hangs, and why.

    `call`: it need not hang, but a call of it had no answer in time. `verdict` is that of `stacks.diagnosis`, line by
    line, and `suspects` its ranks.
    """

    mesh: str
    generation: int
    message: str
    verdict: tuple[str, ...] = ()
    suspects: tuple[int, ...] = ()
    call: bool = field(default=False, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class HookBegun:
    """The command of `on:` for event number `seq` will be started now: it is run once at most."""

    seq: int
    hook: str


@dataclass(frozen=True)
class HookEnded:
    """That command has ended; `why` says what was wrong, None if it succeeded."""

    seq: int
    hook: str
    why: str | None = None


RECORDS = (
    *(Born, AgentUp, AgentLost, Happened, StopAsked, RestartAsked, Added, Adopted, Moved, Stranded, Waited, TimeUp),
    *(Report, Diagnosed, HookBegun, HookEnded),
)
Record: TypeAlias = (
    Born
    | AgentUp
    | AgentLost
    | Happened
    | StopAsked
    | RestartAsked
    | Added
    | Adopted
    | Moved
    | Stranded
    | Waited
    | TimeUp
    | Report
    | Diagnosed
    | HookBegun
    | HookEnded
)


MONOTONIC = "monotonic"
"""Key of a journal line: when it was written, by the monotonic clock of the controller's machine, in seconds."""


def to_line(time: float, record: Record) -> dict[str, Any]:
    """A record as the JSON object of a journal line; `time` is unix time."""
    return {"time": round(time, 6), **to_tagged(record)}


def from_line(line: Any) -> tuple[float, Record]:
    """The unix time and record of a journal line; raises KeyError, TypeError or ValueError."""
    data = dict(line)
    time = float(data.pop("time"))
    data.pop(MONOTONIC, None)
    return time, from_tagged(RECORDS, data)
