"""Why meshes failed, in words and as data: one source for status, news, events, incidents and `why`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from forgectl.controller.hints import hint_for
from forgectl.controller.records import Diagnosed
from forgectl.controller.state import MeshState, RankState, describe, first_failed
from forgectl.model.event import Failure, Fell, ranges
from forgectl.model.status import FailureKind, FailureStatus

_MEMORY = re.compile(r"\b(?:\w*OutOfMemoryError|MemoryError)\b|CUDA out of memory")
_NUMBER = re.compile(r"\d+")
MOST_FELL = 8
"""Most ways to end that are told apart among the ranks that fell with the first."""
ENDED = "ended by forgectl"


def reason(mesh: MeshState) -> str | None:
    """Why the mesh is in its state, in one line; None if there is no special reason."""
    if mesh.cause:
        return f"{mesh.cause}; {mesh.repeated}" if mesh.repeated else mesh.cause
    if mesh.failed and (root := mesh.root_cause()):
        others = len(mesh.collateral())
        fell = f" ({others} more fell with it)" if others else ""
        return describe(root) + fell + (f"; {mesh.repeated}" if mesh.repeated else "")
    if mesh.unkillable:
        return f"not even SIGKILL ended {', '.join(mesh.unkillable)}"
    if mesh.stop is not None and mesh.state in ("stopping", "stopped"):
        return f"stopped by {mesh.stop.by}"
    if mesh.diagnosed:
        return mesh.diagnosed.message
    if mesh.orphan and mesh.open:
        return "waits until its driver, which was restarted, launches it again"
    if mesh.last_failure and mesh.due is not None:
        return mesh.last_failure  # it has not restarted yet
    if mesh.again is not None:
        return f"restarted by {mesh.again.by}"
    if mesh.last_failure and mesh.restarts:
        return f"restarted: {mesh.last_failure}"
    return mesh.notices[-1] if mesh.notices else None


def kind_of(rank: RankState) -> FailureKind:
    """How a rank failed."""
    end = rank.exit
    if end is None:
        return "lease" if rank.lease else "host_lost"
    if end.oom or (end.error and _MEMORY.search(end.error)):
        return "out_of_memory"
    if end.error and (end.signal is None or end.asked):
        return "exception"
    return "exit" if end.signal is None else "signal"


def kind_of_cause(*, detail: str, time_up: bool = False, hung: bool = False) -> FailureKind:
    """How a mesh failed whose cause is not a rank; `detail` is the traceback, if there is one."""
    if hung:
        return "hang"
    return "time_limit" if time_up else "exception" if detail.startswith("Traceback") else "not_started"


def failure_of(rank: RankState) -> FailureStatus:
    """How a rank failed, without the path of its log."""
    end = rank.exit
    return FailureStatus(
        rank=rank.plan.rank,
        host=rank.plan.host,
        message=describe(rank),
        traceback=end.traceback if end else None,
        log_tail=end.log_tail if end else (),
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        kind=kind_of(rank),
    )


def failure_of_mesh(mesh: MeshState) -> FailureStatus:
    """How a mesh failed whose cause is not a rank."""
    return _by_cause(mesh, mesh.cause, mesh.detail, hung=mesh.ended_by_hang)


def _by_cause(mesh: MeshState, cause: str | None, detail: str, *, hung: bool) -> FailureStatus:
    kind = kind_of_cause(time_up=mesh.time_up, hung=hung, detail=detail)
    return FailureStatus(None, None, cause or "", detail or None, kind=kind)


def failure_in(
    mesh: MeshState,
    generation: int,
    ranks: Mapping[int, RankState],
    *,
    cause: str | None,
    detail: str,
    hung: bool,
    policy: str,
) -> Failure | None:
    """The failure of a generation: of its `cause`, if that is no rank, else of the first of its ranks that failed.

    `hung`: the cause is that it hangs.
    """
    root = None if cause else first_failed(ranks.values())
    if root is None and cause is None:
        return None
    found = failure_of(root) if root else _by_cause(mesh, cause, detail, hung=hung)
    assert found.kind is not None
    return Failure(
        kind=found.kind,
        message=found.message,
        mesh=mesh.name,
        generation=generation,
        rank=found.rank,
        host=found.host,
        exit_code=found.exit_code,
        signal=found.signal,
        failed_at=root.failed_at if root else None,
        traceback=found.traceback,
        log_tail=found.log_tail,
        log=f"logs/{mesh.name}/{generation}/rank-{root.plan.rank}.log" if root and root.log else None,
        fell=tuple(_fell(ranks.values(), root)),
        policy=policy,
        hint=hint_for(found),
    )


def hang_of(mesh: MeshState, what: Diagnosed, policy: str) -> Failure:
    """A hang as a failure; its rank is the suspect, if there is exactly one."""
    suspect = mesh.ranks.get(what.suspects[0]) if len(what.suspects) == 1 else None
    return Failure(
        kind="hang",
        message=what.message,
        mesh=mesh.name,
        generation=what.generation,
        rank=suspect.plan.rank if suspect else None,
        host=suspect.plan.host if suspect else None,
        exit_code=None,
        signal=None,
        failed_at=mesh.hung_at,
        traceback=None,
        log_tail=(),
        log=f"logs/{mesh.name}/{what.generation}/rank-{suspect.plan.rank}.log" if suspect and suspect.log else None,
        fell=(),
        policy=policy,
        hint=hint_for(FailureStatus(None, None, what.message, kind="hang")),
    )


def _fell(ranks: Iterable[RankState], root: RankState | None) -> Iterator[Fell]:
    """The ranks that ended besides the first that failed, together where they ended alike but for numbers."""
    groups: dict[str, tuple[str, list[int]]] = {}
    for rank in ranks:
        if rank is root or not (rank.failed or (rank.exit and rank.exit.asked)):
            continue
        how = ENDED
        if rank.failed:
            how = describe(rank).removeprefix(f"rank {rank.plan.rank} on {rank.plan.host} ").removeprefix("was ")
        key = _NUMBER.sub("", how)
        if key not in groups and len(groups) == MOST_FELL:
            key = how = "ended in other ways"
        groups.setdefault(key, (how[:200], []))[1].append(rank.plan.rank)
    return (Fell(ranges(numbers), len(numbers), how) for how, numbers in groups.values())
