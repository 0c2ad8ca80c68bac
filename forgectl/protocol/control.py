"""CLI, or driver, and controller: questions and requests about a run."""

from __future__ import annotations

from forgectl.frozen import dataclass
from forgectl.model.plan import Unit
from forgectl.model.status import RunStatus
from forgectl.stacks.evidence import RankEvidence
from forgectl.wire.envelope import Hello, Refusal


@dataclass(frozen=True)
class GetStatus:
    """Ask for one StatusReport, with processor and memory use if `stats`."""

    stats: bool = False


@dataclass(frozen=True)
class Attach:
    """Stream a StatusReport at every change. The run ends when the connection of an `owner` ends."""

    owner: bool = False


@dataclass(frozen=True)
class FollowLogs:
    """Fetch what ranks of these meshes (None: all) write on ssh hosts, until this connection ends."""

    meshes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BringLogs:
    """Fetch what ranks of these meshes have written on ssh hosts so far; answered by LogsHome."""

    meshes: tuple[str, ...]


@dataclass(frozen=True)
class ShowStacks:
    """Ask where these ranks are, mesh → ranks: answered by a HostStacks for each of their hosts, then StacksShown.

    `native`: with the frames of C code, by py-spy.
    """

    ranks: dict[str, tuple[int, ...]]
    native: bool = False

    @property
    def seconds(self) -> float:
        """What a host may take to answer."""
        return 60.0 if self.native else 5.0


BY_HANDLE = "its driver"
"""Who asked for a shutdown, if the driver's code did by a handle."""


@dataclass(frozen=True)
class Shutdown:
    """Stop these meshes (None: all, and the run with them); `grace` in seconds, 0 kills at once."""

    meshes: tuple[str, ...] | None
    grace: float
    by: str  # who asked, for the reason: "forgectl shutdown", "Ctrl-C"
    exit_code: int = 0  # of a foreground launch


@dataclass(frozen=True)
class Restart:
    """End these meshes and start their next generation on the same GPUs; `grace` as in Shutdown.

    `meshes`: mesh → its generation. A mesh that is in another one by now is left alone, so this may be sent again.
    """

    meshes: dict[str, int]
    grace: float
    by: str


@dataclass(frozen=True)
class AddMesh:
    """Place and start one more mesh, or adopt one; answered by MeshAdded or Refusal.

    Unless `named`, a number is appended to its name if the name is taken. `claim` is the same for the launch that a
    driver repeats after its restart: the mesh that an earlier driver launched by it is adopted, if it lives and its
    `terms`, a digest for each thing that was asked for besides the unit, are the same. `driver` is the generation of
    the driver that asks. `only_adopt`: there is no new mesh; NotFoundError refuses it if there is none to adopt.
    """

    unit: Unit
    named: bool
    claim: str = ""
    terms: dict[str, str] | None = None
    driver: int = 0
    only_adopt: bool = False


@dataclass(frozen=True)
class Report:
    """The result of setting up a generation's actors: all are ready, or one raised (`error`, with its traceback)."""

    mesh: str
    generation: int
    error: str | None = None
    traceback: str = ""


@dataclass(frozen=True)
class CallTimedOut:
    """A call of a generation's ranks had no answer within its handle's timeout; `what` says so."""

    mesh: str
    generation: int
    what: str


@dataclass(frozen=True)
class MeshAdded:
    """The name of the mesh in the run, and its first generation; an earlier mesh of that name had those before."""

    mesh: str
    generation: int = 0


@dataclass(frozen=True)
class LogsHome:
    """The logs are in the run's directory, except those of the hosts in `without`, which could not be reached."""

    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class HostStacks:
    """Where the ranks on a host are, by mesh; None if the host did not answer."""

    host: str
    meshes: dict[str, tuple[RankEvidence, ...]] | None


@dataclass(frozen=True)
class StacksShown:
    """Every host has been asked."""


@dataclass(frozen=True)
class StatusReport:
    """The status of a run; `ended`: this is the last report."""

    run: RunStatus
    ended: bool = False


CLI_TO_CONTROLLER = (
    *(Hello, GetStatus, Attach, FollowLogs, BringLogs, ShowStacks, Shutdown, Restart, AddMesh, Report, CallTimedOut),
)


CONTROLLER_TO_CLI = (Hello, Refusal, StatusReport, LogsHome, HostStacks, StacksShown, MeshAdded)
