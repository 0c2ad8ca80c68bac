"""A run's state as `forgectl status` shows it."""

from __future__ import annotations

import dataclasses
from typing import Any

from forgectl.controller.causes import failure_of, failure_of_mesh, reason
from forgectl.controller.run_dir import RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.state import HostState, MeshState, RankState, describe
from forgectl.model.status import (
    CollateralStatus,
    ControllerStatus,
    FailureStatus,
    HangStatus,
    HostStatus,
    MeshStatus,
    RankStatus,
    RestartStatus,
    RunStatus,
    SpareName,
)
from forgectl.protocol.supervision import RankStats
from forgectl.system.times import timestamp
from forgectl.wire.envelope import MAX_LINE

Use = dict[str, dict[int, RankStats]]
TEXT_ROOM = MAX_LINE // 2
"""Most bytes of all text that hosts sent; the states of ranks take the rest of a message."""
_TEXTS = ("reason", "error", "failure", "last_failure", "notices", "unkillable", "hung")
_CUTS = (32 * 1024, 8 * 1024, 2048, 512, 128, 32)


def run_document(run: Run, run_dir: RunDir, *, alive: bool = True, use: Use | None = None) -> RunStatus:
    """The state of a run. `alive`: whether the run has a controller; `use`: mesh → rank → its use."""
    return RunStatus(
        run=run.id,
        name=run.plan.name,
        state=run.state,
        spec=run.plan.spec or ("" if run.plan.open else str(run_dir.spec_file)),
        started_at=timestamp(run.started_at),
        ended_at=None if run.ended_at is None else timestamp(run.ended_at),
        exit_code=run.exit_code if run.ended else None,
        error=run.error,
        stopped_by=run.stop.by if run.stop else None,
        was_up=run.was_up,
        controller=ControllerStatus(run.controller_pid, alive),
        run_dir=str(run_dir.path),
        lease=run.plan.lease,
        hosts=tuple(_host(h) for h in run.hosts.values()),
        meshes=_fitting([_mesh(m, run.hosts, run_dir, (use or {}).get(m.name, {})) for m in _in_order(run)]),
    )


def _fitting(meshes: list[MeshStatus]) -> tuple[MeshStatus, ...]:
    """The meshes with their texts cut as much as needed: a document must fit one message, whatever hosts sent."""
    texts = [{name: getattr(mesh, name) for name in _TEXTS} for mesh in meshes]
    if _weight(texts) <= TEXT_ROOM:
        return tuple(meshes)
    for most in _CUTS:
        texts = _cut(texts, most)
        if _weight(texts) <= TEXT_ROOM:
            break
    return tuple(dataclasses.replace(mesh, **text) for mesh, text in zip(meshes, texts, strict=True))


def _weight(value: Any) -> int:
    """An upper bound of the bytes that its texts take in JSON."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 12 * len(value)
    if isinstance(value, (list, tuple)):
        return sum(map(_weight, value))
    return sum(map(_weight, _parts(value).values()))


def _cut(value: Any, most: int, end: bool = False) -> Any:
    """The same with at most `most` characters of each text: the last ones of tracebacks and logs, else the first."""
    if isinstance(value, str):
        return value[-most:] if end else value[:most]
    if isinstance(value, (list, tuple)):
        return type(value)(_cut(v, most, end) for v in value)
    parts = {name: _cut(v, most, name in ("traceback", "log_tail")) for name, v in _parts(value).items()}
    return parts if isinstance(value, dict) else dataclasses.replace(value, **parts) if parts else value


def _parts(value: Any) -> dict[str, Any]:
    """The fields of a dataclass or dict, by name; {} for any other value."""
    if isinstance(value, dict):
        return value
    return vars(value) if dataclasses.is_dataclass(value) else {}


def _in_order(run: Run) -> list[MeshState]:
    """Meshes in the run's order, but the replicas of a service together, by number: code adds them in any order."""
    places: dict[str, int] = {}

    def place(mesh: MeshState) -> tuple[int, int]:
        service, _, number = mesh.name.rpartition(".")
        if mesh.plan.kind != "service" or not number.isdigit():
            service, number = mesh.name, "0"
        return places.setdefault(service, len(places)), int(number)

    return sorted(run.meshes.values(), key=place)


def _host(host: HostState) -> HostStatus:
    seen = None if host.last_seen is None else timestamp(host.last_seen)
    spare: SpareName | None = None
    if host.spare and host.state != "lost":
        spare = "warming" if host.standing_by is None else "cold" if host.standing_by else "warm"
    return HostStatus(host.plan.name, host.state, host.plan.address, seen, host.pid, spare)


def _mesh(mesh: MeshState, hosts: dict[str, HostState], run_dir: RunDir, use: dict[int, RankStats]) -> MeshStatus:
    return MeshStatus(
        mesh=mesh.name,
        kind=mesh.plan.kind,
        state=mesh.state,
        since=timestamp(mesh.since) if mesh.since else None,
        desired=mesh.plan.procs,
        ready=sum(r.state == "running" for r in mesh.ranks.values()) if mesh.set_up or not mesh.plan.stays else 0,
        generation=mesh.generation,
        restarts=len(mesh.restarts),
        max_restarts=mesh.plan.restart.max,
        reason=reason(mesh),
        open=mesh.open and all(hosts[h].plan.local or bool(hosts[h].messenger) for h in mesh.plan.hosts),
        error=mesh.error,
        failure=_failure(mesh, run_dir),
        last_failure=_last_failure(mesh, run_dir),
        notices=tuple(mesh.notices),
        unkillable=tuple(mesh.unkillable),
        ranks=tuple(_rank(r, mesh, run_dir, use.get(r.plan.rank)) for r in mesh.ranks.values()),
        restarting=_restarting(mesh),
        implicit=mesh.plan.program.kind == "resident",
        seconds_since_progress=max((s.still for s in use.values() if s.still is not None), default=None),
        hung=_hung(mesh),
    )


def _hung(mesh: MeshState) -> HangStatus | None:
    if mesh.diagnosed is None or mesh.ended:
        return None
    ranks = tuple(sorted({rank for what in mesh.hung.values() for rank in what.ranks}))
    return HangStatus(timestamp(mesh.hung_at), ranks, mesh.diagnosed.message, mesh.diagnosed.verdict)


def _restarting(mesh: MeshState) -> RestartStatus | None:
    if mesh.state != "restarting" or mesh.again is not None:
        return None
    number = len(mesh.restarts) + (mesh.judged == mesh.generation)
    return RestartStatus(number, mesh.wait, None if mesh.due is None else timestamp(mesh.due))


def _failure(mesh: MeshState, run_dir: RunDir) -> FailureStatus | None:
    """The root cause of a failed mesh, with its traceback and last log lines, and the collateral ranks."""
    if mesh.cause:
        return failure_of_mesh(mesh)
    root = mesh.root_cause() if mesh.failed else None
    if root is None:
        return None
    collateral = tuple(CollateralStatus(r.plan.rank, describe(r)[:200]) for r in mesh.collateral())
    return dataclasses.replace(_rank_failure(root, mesh, mesh.generation, run_dir), collateral=collateral)


def _rank_failure(rank: RankState, mesh: MeshState, generation: int, run_dir: RunDir) -> FailureStatus:
    return dataclasses.replace(failure_of(rank), log=_log(rank, mesh, generation, run_dir))


def _last_failure(mesh: MeshState, run_dir: RunDir) -> FailureStatus | None:
    """The root cause of the previous generation's failure."""
    cause = mesh.last_root_cause
    return _rank_failure(cause, mesh, mesh.generation - 1, run_dir) if cause else None


def _log(rank: RankState, mesh: MeshState, generation: int, run_dir: RunDir) -> str | None:
    """The path of its log on this machine; a remote log is fetched to it. None before the rank has one."""
    return str(run_dir.log(mesh.name, generation, rank.plan.rank)) if rank.log else None


def _rank(rank: RankState, mesh: MeshState, run_dir: RunDir, use: RankStats | None) -> RankStatus:
    return RankStatus(
        rank=rank.plan.rank,
        local_rank=rank.plan.local_rank,
        host=rank.plan.host,
        pid=rank.pid,
        state=rank.state,
        exit_code=rank.exit.exit_code if rank.exit else None,
        signal=rank.exit.signal if rank.exit else None,
        gpus=rank.plan.gpus,
        cpu_percent=use.cpu_percent if use else None,
        rss_bytes=use.rss_bytes if use else None,
        log=_log(rank, mesh, mesh.generation, run_dir),
        seconds_since_progress=use.still if use else None,
    )
