"""What happened to a run, in order of cause: made of its status and its events. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from forgectl.controller.causes import kind_of_cause
from forgectl.controller.hints import hint_for
from forgectl.frozen import dataclass
from forgectl.model.event import SCHEMA, Failure, RunEvent, failure_json, ranges
from forgectl.model.status import FailureKind, MeshStatus, RunStatus
from forgectl.system.processes import signal_name
from forgectl.wire.codec import to_json

EndKind = Literal["goes_on", "succeeded", "user", "driver_end", "launcher_end", "not_started"]
MOST_EARLIER = 20
"""Most earlier failures of a mesh that are told."""


@dataclass(frozen=True)
class Earlier:
    """Failures in a row of one mesh that were alike: of `count` generations, the last one being `generation`."""

    generation: int
    count: int
    message: str
    failed_at: float | None
    policy: str


@dataclass(frozen=True)
class MeshAccount:
    """What happened to one mesh. `seq`: the number of the event to which its incident belongs.

    `verdict`: what a diagnosis of its ranks found, line by line; `incident` is the path of the incident.
    """

    mesh: str
    state: str
    seq: int
    failure: Failure
    earlier: tuple[Earlier, ...]
    hangs: bool = False
    verdict: tuple[str, ...] = ()
    incident: str | None = None


@dataclass(frozen=True)
class Account:
    """What happened to a run. `kind` is that of the first failure, or how it ended without one."""

    run: str
    state: str
    kind: FailureKind | EndKind
    summary: str
    hint: str | None
    started_at: str
    ended_at: str | None
    exit_code: int | None
    stopped_by: str | None
    meshes: tuple[MeshAccount, ...]
    ranks: str | None
    run_dir: str


def account_of(
    status: RunStatus, events: Sequence[RunEvent], meshes: Collection[str] | None = None, rank: int | None = None
) -> Account:
    """The account of a run, or of some meshes of it (None: of all); `rank`: also how that rank of each ended."""
    shown = [m for m in status.meshes if meshes is None or m.mesh in meshes]
    accounts = [found for mesh in shown if (found := _mesh(mesh, events))]
    lasting = ("failed", "lost")
    accounts.sort(key=lambda a: (a.state not in lasting, a.failure.failed_at or 0.0, a.seq))
    kind, summary, hint = _run(status, accounts, shown, whole=meshes is None)
    return Account(
        run=status.run,
        state=status.state,
        kind=kind,
        summary=summary,
        hint=hint,
        started_at=status.started_at,
        ended_at=status.ended_at,
        exit_code=status.exit_code,
        stopped_by=status.stopped_by,
        meshes=tuple(accounts),
        ranks=None if rank is None else "; ".join(_rank(m, rank) for m in shown),
        run_dir=status.run_dir,
    )


def account_json(account: Account) -> dict[str, Any]:
    """The JSON document of an account."""
    found = to_json(account)
    for mesh, told in zip(account.meshes, found["meshes"], strict=True):
        told["failure"] = failure_json(mesh.failure)
    return {"schema_version": SCHEMA, **found}


# ---------------------------------------------------------------- a mesh


def _mesh(mesh: MeshStatus, events: Iterable[RunEvent]) -> MeshAccount | None:
    """What happened to a mesh; None if it never failed. The last word on each of its generations counts."""
    found: dict[int, RunEvent] = {}
    for event in events:
        if event.mesh == mesh.mesh and event.failure is not None:
            generation, kind = event.failure.generation, event.failure.kind
            before = found.get(generation)
            same = before is not None and (before.event != "mesh_hung" or kind == "hang")
            found[generation] = dataclasses.replace(event, seq=before.seq) if before and same else event
        elif event.mesh == mesh.mesh and event.event == "mesh_moved" and found:
            number = max(found)
            found[number] = _then(found[number], event.message)
    if not found:
        return _without_events(mesh)
    *earlier, (_, last) = sorted(found.items())
    assert last.failure is not None
    alike = _alike([event.failure for _, event in earlier if event.failure])
    return MeshAccount(mesh.mesh, mesh.state, last.seq, last.failure, alike, mesh.hung is not None)


def _then(event: RunEvent, what: str) -> RunEvent:
    """The event of a failure, of which it is known what else was done about it."""
    assert event.failure is not None
    failure = dataclasses.replace(event.failure, policy=f"{event.failure.policy}; {what}")
    return dataclasses.replace(event, failure=failure)


def _alike(failures: Iterable[Failure]) -> tuple[Earlier, ...]:
    found: list[Earlier] = []
    for f in failures:
        count = found.pop().count + 1 if found and found[-1].message == f.message else 1
        found.append(Earlier(f.generation, count, f.message, f.failed_at, f.policy))
    return tuple(found[-MOST_EARLIER:])


def _without_events(mesh: MeshStatus) -> MeshAccount | None:
    """What its status says: the journal of the run may have been damaged, or the disk full."""
    status = mesh.failure or mesh.last_failure
    if status is None:
        return None
    fell = [c.rank for c in status.collateral]
    failure = Failure(
        kind=status.kind or kind_of_cause(detail=status.traceback or ""),
        message=status.message,
        mesh=mesh.mesh,
        generation=mesh.generation if mesh.failure else mesh.generation - 1,
        rank=status.rank,
        host=status.host,
        exit_code=status.exit_code,
        signal=status.signal,
        failed_at=None,
        traceback=status.traceback,
        log_tail=status.log_tail,
        log=None,
        fell=(),
        policy=f"ranks {ranges(fell)} fell with it" if fell else "",
        hint=hint_for(status),
    )
    return MeshAccount(mesh.mesh, mesh.state, 0, failure, ())


def _rank(mesh: MeshStatus, number: int) -> str:
    """How a rank ended, and whether it was the cause."""
    rank = next((r for r in mesh.ranks if r.rank == number), None)
    if rank is None:
        return ""
    name = f"{mesh.mesh}/{number} on {rank.host}"
    if not rank.ended:
        return f"{name} is {rank.state}"
    how = f"was ended by {signal_name(rank.signal)}" if rank.signal else f"exited with code {rank.exit_code}"
    how = "was lost" if rank.state == "lost" else how
    if mesh.failure is None:
        return f"{name} {how}"
    if mesh.failure.rank == number:
        return f"{name} {how}: it was the first to fail"
    alike = any(c.rank == number for c in mesh.failure.collateral)
    return f"{name} {how}: " + ("it fell with the first" if alike else "forgectl ended it, or it was done")


# ---------------------------------------------------------------- the run


def _run(
    status: RunStatus, accounts: Sequence[MeshAccount], meshes: Sequence[MeshStatus], *, whole: bool
) -> tuple[FailureKind | EndKind, str, str | None]:
    """Kind, sentence and hint of the whole."""
    by = status.stopped_by
    if whole and status.error is not None:
        kind = accounts[0].failure.kind if accounts else "not_started"
        return kind, f"it could not be launched: {status.error.message}", status.error.hint
    for account in accounts:
        if account.state in ("failed", "lost"):
            return account.failure.kind, f"{account.mesh} {account.state}: {account.failure.message}", None
    if whole and not status.ended:
        return "goes_on", _now(status, meshes), None
    states = {m.state for m in meshes}
    if not whole and not states <= {"succeeded", "failed", "stopped", "lost"}:
        return "goes_on", _now(status, meshes), None
    if states <= {"succeeded"} or (whole and status.state == "succeeded"):
        return "succeeded", "it was done", None
    if by == "the end of its driver":
        return "driver_end", "its driver ended, and all else with it", None
    if by == "the end of its launcher":
        return "launcher_end", "the command or script that launched it ended, and it with it", None
    reasons = dict.fromkeys(m.reason for m in meshes if m.reason and m.state == "stopped")
    return "user", f"stopped by {by}" if by else "; ".join(r for r in reasons if r) or status.state, None


def _now(status: RunStatus, meshes: Sequence[MeshStatus]) -> str:
    """What goes on."""
    parts = []
    for mesh in meshes:
        if mesh.implicit and len(meshes) > 1 and mesh.up:
            continue
        text = f"{mesh.mesh} is {mesh.state}, {mesh.ready} of {mesh.desired} ranks ready"
        if mesh.restarting is not None:
            text = f"{mesh.mesh} waits for restart {mesh.restarting.number} of {mesh.max_restarts}"
        elif mesh.ended:
            text = f"{mesh.mesh} {mesh.state}"
        parts.append(text + (f" ({mesh.reason})" if mesh.reason and not mesh.restarting else ""))
    parts += [f"host {h.name} is {h.state}" for h in status.hosts if h.state in ("reconnecting", "lost", "starting")]
    return "; ".join(parts)
