"""CLI, or driver, and controller: what a run is asked."""

from __future__ import annotations

from forgectl.frozen import dataclass
from forgectl.model.plan import Unit
from forgectl.model.status import RunStatus
from forgectl.wire.envelope import Hello, Refusal


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


@dataclass(frozen=True)
class MeshAdded:
    """The name under which the mesh is now part of the run, and its first generation: a mesh before had the others."""

    mesh: str
    generation: int = 0


@dataclass(frozen=True)
class LogsHome:
    """The logs are in the run's directory; `without` are hosts that could not be asked."""

    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class StatusReport:
    """One run; the last report if it has `ended`."""

    run: RunStatus
    ended: bool = False


CLI_TO_CONTROLLER = (Hello, GetStatus, Attach, FollowLogs, BringLogs, Shutdown, AddMesh, Report)


CONTROLLER_TO_CLI = (Hello, Refusal, StatusReport, LogsHome, MeshAdded)
