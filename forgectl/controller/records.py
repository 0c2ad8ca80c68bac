"""What a run's journal holds: the facts from which its whole state follows. Replaying them gives the state again."""

from __future__ import annotations

from typing import Any, TypeAlias

from forgectl.frozen import dataclass
from forgectl.model.plan import MeshPlan
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import Happening
from forgectl.system.processes import Identity
from forgectl.wire.codec import from_tagged, to_tagged


@dataclass(frozen=True)
class Born:
    """A controller began the run, or took it over (`adopted`). `pid` is its own; with its `owner` the run ends.

    `rebuilt`: the journal was damaged, so that agents tell again all that they know.
    """

    pid: int
    adopted: bool = False
    rebuilt: bool = False
    owner: Identity | None = None


@dataclass(frozen=True)
class AgentUp:
    """An agent answers on the host. Another pid than before means another agent, which knows of nothing."""

    host: str
    pid: int
    boot_id: str


@dataclass(frozen=True)
class AgentLost:
    """The host's agent is gone, and with it all that it ran. `final`: no other could be started in its place."""

    host: str
    why: str
    code: int = 69
    hint: str | None = None
    final: bool = False


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
class Added:
    """The driver's code asked for one more mesh."""

    plan: MeshPlan


@dataclass(frozen=True)
class Moved:
    """A mesh that had a lost host has found others for its next generation."""

    plan: MeshPlan


@dataclass(frozen=True)
class Stranded:
    """A mesh that had a lost host finds no others."""

    mesh: str
    why: str


Record: TypeAlias = Born | AgentUp | AgentLost | Happened | StopAsked | Added | Moved | Stranded | Report
RECORDS = (Born, AgentUp, AgentLost, Happened, StopAsked, Added, Moved, Stranded, Report)


def to_line(time: float, record: Record) -> dict[str, Any]:
    """A record as a line of the journal; `time` is unix time."""
    return {"time": round(time, 6), **to_tagged(record)}


def from_line(line: Any) -> tuple[float, Record]:
    """The record in a line of the journal; raises KeyError, TypeError or ValueError."""
    data = dict(line)
    time = float(data.pop("time"))
    return time, from_tagged(RECORDS, data)
