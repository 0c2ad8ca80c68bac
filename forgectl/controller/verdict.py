"""Decides when a run is over, its final state and its exit code. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from forgectl.controller.records import StopAsked
from forgectl.controller.state import MeshState, RankState
from forgectl.errors import TimedOutError, UnreachableError
from forgectl.model.plan import Plan
from forgectl.model.status import RunStateName
from forgectl.system.processes import Identity
from forgectl.wire.envelope import Refusal


class Outcome(Protocol):
    """The part of a `Run` that a verdict needs."""

    plan: Plan
    meshes: dict[str, MeshState]
    state: RunStateName
    stop: StopAsked | None
    error: Refusal | None
    owner: Identity | None


def over(run: Outcome) -> str | None:
    """Why the run has nothing left to do; None while it has."""
    if any(m.ended for m in run.meshes.values() if m.plan.kind == "driver"):
        return "the end of its driver"
    deciding = _deciding(run)
    if deciding and all(m.ended for m in deciding):
        return f"the end of its {deciding[0].plan.kind}s"
    if (cause := _cause(run)) is not None:
        return f"the failure of {cause.name}"
    return None


def verdict(run: Outcome) -> RunStateName:
    """The state of a run whose meshes have all ended."""
    states = {m.state for m in _blamed(run)}
    if run.error is not None or "failed" in states:
        return "failed"
    if "lost" in states:
        return "lost"
    if (deciding := _deciding(run)) and all(m.state == "succeeded" for m in deciding):
        return "succeeded"
    return "stopped"


def exit_code(run: Outcome) -> int:
    """The exit code of a launch in the foreground: that of the failed workload, if there is one."""
    if run.stop is not None and run.stop.exit_code:
        return run.stop.exit_code
    for mesh in sorted(_blamed(run), key=lambda m: m.since):
        if mesh.state == "failed":
            return TimedOutError.exit_code if mesh.time_up else _workload_code(mesh.root_cause())
    if run.state == "lost":
        return UnreachableError.exit_code
    return 0 if run.state in ("succeeded", "starting", "running") else 143


def _blamed(run: Outcome) -> Collection[MeshState]:
    """The meshes whose failure is the run's: one that ended it, else a driver script, which handles others itself."""
    cause = _cause(run)
    return [cause] if cause is not None else _drivers(run) or run.meshes.values()


def _cause(run: Outcome) -> MeshState | None:
    """The mesh whose failure ends the run by its `on_failure`, if one has failed."""
    policy = run.plan.on_failure or ("scripts" if run.owner is not None else "continue")
    failed = [
        m
        for m in run.meshes.values()
        if m.state in ("failed", "lost") and (policy == "stop" or (policy == "scripts" and m.plan.kind == "script"))
    ]
    return min(failed, key=lambda m: m.since, default=None)


def _deciding(run: Outcome) -> list[MeshState]:
    """The meshes that end the run when they end: its driver, else its scripts, else its actors."""
    if run.plan.open:
        return []
    meshes = run.meshes.values()
    return _drivers(run) or [m for m in meshes if m.plan.kind == "script"] or [m for m in meshes if m.plan.stays]


def _drivers(run: Outcome) -> list[MeshState]:
    """The mesh of the user's own driver script, if there is one."""
    return [m for m in run.meshes.values() if m.plan.kind == "driver" and m.plan.program.kind != "resident"]


def _workload_code(rank: RankState | None) -> int:
    if rank is None or rank.exit is None:
        return 1
    if rank.exit.asked and rank.exit.error:
        return 1  # as of the exception that ended it before we did
    return rank.exit.exit_code or 128 + (rank.exit.signal or 0)
