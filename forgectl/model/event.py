"""Events of a run as `forgectl events --json` prints them, and what is known of a failure.

Fields are named and ordered as in that JSON. Times are unix times here; there they are UTC, as in
`2026-11-22T20:00:00.123Z`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any, Literal

from forgectl.frozen import UNLESS_DEFAULT, dataclass
from forgectl.model.status import FailureKind
from forgectl.system.times import timestamp
from forgectl.wire.codec import to_json

SCHEMA = 1
"""The version of the documents of events, incidents and `forgectl why`."""
EventName = Literal[
    "run_started", "run_up", "run_stopping", "run_ended", "controller_replaced",
    "host_up", "host_lost",
    "mesh_added", "mesh_adopted", "mesh_moved",
    "mesh_starting", "mesh_up", "mesh_failing", "mesh_hung", "mesh_resumed", "mesh_restarted",
    "mesh_stopping", "mesh_failed", "mesh_ended",
    "rank_started", "rank_exited", "call_timed_out", "notice", "hook_failed",
]  # fmt: skip
HookName = Literal["failed", "hung", "restarted", "host_lost", "ended"]
HOOKS: dict[EventName, HookName] = {
    "mesh_failed": "failed",
    "mesh_hung": "hung",
    "mesh_restarted": "restarted",
    "host_lost": "host_lost",
    "run_ended": "ended",
}
"""Event → the command of `on:` that it runs. A restart runs one if it follows a failure."""


@dataclass(frozen=True)
class Fell:
    """Ranks that ended because of the first failure, all in the same way: `ranks` is such as `0-2,5`."""

    ranks: str
    count: int
    how: str


@dataclass(frozen=True)
class Failure:
    """Why one generation of a mesh failed: its first failure, what fell with it, and what followed.

    If the cause is no rank, as when nothing could start, `rank` is None. `log` is the path of the rank's log from the
    run's folder. `policy` says what was done, `hint` what may help.
    """

    kind: FailureKind
    message: str
    mesh: str | None
    generation: int
    rank: int | None
    host: str | None
    exit_code: int | None
    signal: int | None
    failed_at: float | None
    traceback: str | None
    log_tail: tuple[str, ...]
    log: str | None
    fell: tuple[Fell, ...]
    policy: str
    hint: str | None


@dataclass(frozen=True)
class RunEvent:
    """One thing that happened, number `seq` of its run. JSON leaves out what does not apply.

    `monotonic`: seconds by the clock of the launching machine that is never set; None if it is not known.
    """

    seq: int
    time: float
    monotonic: float | None
    event: EventName
    run: str
    message: str
    mesh: str | None = field(default=None, metadata=UNLESS_DEFAULT)
    generation: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    rank: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    host: str | None = field(default=None, metadata=UNLESS_DEFAULT)
    pid: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    exit_code: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    signal: int | None = field(default=None, metadata=UNLESS_DEFAULT)
    state: str | None = field(default=None, metadata=UNLESS_DEFAULT)
    by: str | None = field(default=None, metadata=UNLESS_DEFAULT)
    failure: Failure | None = field(default=None, metadata=UNLESS_DEFAULT)

    @property
    def subject(self) -> str:
        """What it is about: MESH/RANK, a mesh, a host or the run."""
        if self.mesh is None:
            return self.host or self.run
        return self.mesh if self.rank is None else f"{self.mesh}/{self.rank}"

    @property
    def hook(self) -> HookName | None:
        """The command of `on:` that it runs, if there is one."""
        return None if self.event == "mesh_restarted" and self.failure is None else HOOKS.get(self.event)


def event_json(event: RunEvent) -> dict[str, Any]:
    """The JSON document of an event."""
    found = {"schema_version": SCHEMA, **to_json(event)}
    found["time"] = timestamp(event.time, "milliseconds")
    if event.failure is not None:
        found["failure"] = failure_json(event.failure)
    return found


def failure_json(failure: Failure) -> dict[str, Any]:
    """The JSON object of a failure."""
    found: dict[str, Any] = to_json(failure)
    if failure.failed_at is not None:
        found["failed_at"] = timestamp(failure.failed_at, "milliseconds")
    return found


def ranges(ranks: Iterable[int]) -> str:
    """Ranks as text: `0-2,5`."""
    parts: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ",".join("-".join(map(str, part)) for part in parts)
