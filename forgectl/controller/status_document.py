"""A run's state as the document that `forgectl status --json` prints."""

from __future__ import annotations

import datetime
from typing import Any

from forgectl.controller.run_dir import RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.state import HostState, MeshState, RankState, describe
from forgectl.protocol.supervision import RankStats
from forgectl.wire.envelope import MAX_LINE, Refusal

Use = dict[str, dict[int, RankStats]]
TEXT_ROOM = MAX_LINE // 2
"""Bytes of all that hosts sent as text; states of ranks take the rest."""
_TEXTS = ("reason", "error", "failure", "last_failure", "notices", "unkillable")
_CUTS = (32 * 1024, 8 * 1024, 2048, 512, 128, 32)


def run_document(run: Run, run_dir: RunDir, *, alive: bool = True, use: Use | None = None) -> dict[str, Any]:
    """One entry of `runs`; `alive`: whether a controller stands behind it, `use`: mesh → rank → its use."""
    return {
        "run": run.id,
        "name": run.plan.name,
        "state": run.state,
        "spec": run.plan.spec,
        "started_at": timestamp(run.started_at),
        "ended_at": timestamp(run.ended_at),
        "exit_code": run.exit_code if run.ended else None,
        "error": error(run.error),
        "stopped_by": run.stop.by if run.stop else None,
        "was_up": run.was_up,
        "controller": {"pid": run.controller_pid, "alive": alive},
        "run_dir": str(run_dir.path),
        "lease": run.plan.lease,
        "hosts": [_host(h) for h in run.hosts.values()],
        "meshes": _fitting([_mesh(m, run.hosts, run_dir, (use or {}).get(m.name, {})) for m in _in_order(run)]),
    }


def _fitting(meshes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The meshes with their texts cut as far as it takes: a document must fit one message, whatever hosts sent."""
    texts = [{name: mesh[name] for name in _TEXTS} for mesh in meshes]
    for most in _CUTS:
        if _weight(texts) <= TEXT_ROOM:
            break
        texts = _cut(texts, most)
    return [mesh | text for mesh, text in zip(meshes, texts, strict=True)]


def _weight(value: Any) -> int:
    """About as many bytes as its texts take in JSON."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 12 * len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 0


def _cut(value: Any, most: int, end: bool = False) -> Any:
    """The same with at most so many characters of each text: the first, or of tracebacks and logs the last."""
    if isinstance(value, str):
        return value[-most:] if end else value[:most]
    if isinstance(value, dict):
        return {k: _cut(v, most, k in ("traceback", "log_tail")) for k, v in value.items()}
    return [_cut(v, most, end) for v in value] if isinstance(value, list) else value


def _in_order(run: Run) -> list[MeshState]:
    """Meshes as they came, but a service's replicas, which code adds in any order, together and by number."""
    places: dict[str, int] = {}

    def place(mesh: MeshState) -> tuple[int, int]:
        service, _, number = mesh.name.rpartition(".")
        if mesh.plan.kind != "service" or not number.isdigit():
            service, number = mesh.name, "0"
        return places.setdefault(service, len(places)), int(number)

    return sorted(run.meshes.values(), key=place)


def _host(host: HostState) -> dict[str, Any]:
    return {
        "name": host.plan.name,
        "state": host.state,
        "address": host.plan.address,
        "last_seen": timestamp(host.last_seen),
        "agent_pid": host.pid,
    }


def _mesh(mesh: MeshState, hosts: dict[str, HostState], run_dir: RunDir, use: dict[int, RankStats]) -> dict[str, Any]:
    return {
        "mesh": mesh.name,
        "kind": mesh.plan.kind,
        "state": mesh.state,
        "since": timestamp(mesh.since or None),
        "desired": mesh.plan.procs,
        "ready": sum(r.state == "running" for r in mesh.ranks.values()) if mesh.set_up or not mesh.plan.stays else 0,
        "generation": mesh.generation,
        "restarts": len(mesh.restarts),
        "max_restarts": mesh.plan.restart.max,
        "reason": reason(mesh),
        "open": mesh.open and all(hosts[h].plan.local or hosts[h].messenger for h in mesh.plan.hosts),
        "error": error(mesh.error),
        "failure": failure(mesh, run_dir),
        "last_failure": _fallen(mesh.fallen, mesh, mesh.generation - 1, run_dir) if mesh.fallen else None,
        "notices": mesh.notices,
        "unkillable": mesh.unkillable,
        "ranks": [_rank(r, mesh, run_dir, use.get(r.plan.rank)) for r in mesh.ranks.values()],
    }


def error(refusal: Refusal | None) -> dict[str, Any] | None:
    """An error that a user can meet, as data."""
    return {"code": refusal.code, "message": refusal.message, "hint": refusal.hint} if refusal else None


def reason(mesh: MeshState) -> str | None:
    """Why the mesh is in its state, in one line; None where there is nothing to say."""
    if mesh.cannot_start:
        return mesh.cannot_start
    if mesh.failed and (root := mesh.root_cause()):
        others = len(mesh.collateral())
        return describe(root) + (f" ({others} more fell with it)" if others else "")
    if mesh.unkillable:
        return f"not even SIGKILL ended {', '.join(mesh.unkillable)}"
    if mesh.stop is not None and mesh.state in ("stopping", "stopped"):
        return f"stopped by {mesh.stop.by}"
    if mesh.last_failure and mesh.restarts:
        return f"restarted: {mesh.last_failure}"
    return mesh.notices[-1] if mesh.notices else None


def failure(mesh: MeshState, run_dir: RunDir) -> dict[str, Any] | None:
    """The first cause of a failed mesh, with its traceback and last log lines; collateral ranks apart."""
    if mesh.cannot_start:
        return {"rank": None, "host": None, "message": mesh.cannot_start, "traceback": mesh.detail or None,
                "log_tail": [], "log": None, "collateral": []}  # fmt: skip
    root = mesh.root_cause() if mesh.failed else None
    if root is None:
        return None
    collateral = [{"rank": r.plan.rank, "message": describe(r)[:200]} for r in mesh.collateral()]
    return {**_fallen(root, mesh, mesh.generation, run_dir), "collateral": collateral}


def _fallen(rank: RankState, mesh: MeshState, generation: int, run_dir: RunDir) -> dict[str, Any]:
    return {
        "rank": rank.plan.rank,
        "host": rank.plan.host,
        "message": describe(rank),
        "traceback": rank.exit.traceback if rank.exit else None,
        "log_tail": list(rank.exit.log_tail) if rank.exit else [],
        "log": _log(rank, mesh, generation, run_dir),
        "exit_code": rank.exit.exit_code if rank.exit else None,
        "signal": rank.exit.signal if rank.exit else None,
    }


def _log(rank: RankState, mesh: MeshState, generation: int, run_dir: RunDir) -> str | None:
    """Where its log is, or comes to, on this machine."""
    return str(run_dir.log(mesh.name, generation, rank.plan.rank)) if rank.log else None


def _rank(rank: RankState, mesh: MeshState, run_dir: RunDir, use: RankStats | None) -> dict[str, Any]:
    return {
        "rank": rank.plan.rank,
        "local_rank": rank.plan.local_rank,
        "host": rank.plan.host,
        "pid": rank.pid,
        "state": rank.state,
        "exit_code": rank.exit.exit_code if rank.exit else None,
        "signal": rank.exit.signal if rank.exit else None,
        "gpus": list(rank.plan.gpus),
        "cpu_percent": use.cpu_percent if use else None,
        "rss_bytes": use.rss_bytes if use else None,
        "log": _log(rank, mesh, mesh.generation, run_dir),
    }


def timestamp(unix: float | None) -> str | None:
    """Unix seconds as `2026-11-22T20:00:00Z`."""
    if unix is None:
        return None
    return datetime.datetime.fromtimestamp(unix, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
