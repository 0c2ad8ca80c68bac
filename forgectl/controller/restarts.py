"""Whether a mesh that failed gets another generation: by its policy, the cause, and where it failed. Pure."""

from __future__ import annotations

from forgectl.controller.causes import failure_of_mesh, kind_of
from forgectl.controller.repetition import Fall, fall_of_exception, fall_of_exit, repeated
from forgectl.controller.state import MeshState
from forgectl.model.plan import RestartCause
from forgectl.model.status import FailureKind
from forgectl.system.times import show_duration

_CAUSES: dict[FailureKind, RestartCause] = {
    "hang": "hang",
    "host_lost": "host_lost",
    "lease": "host_lost",
    "out_of_memory": "oom",
}


def cause_of(kind: FailureKind | None) -> RestartCause:
    """The cause, as `restart.on` names it, of a failure of that kind."""
    return _CAUSES.get(kind, "crash") if kind else "crash"


def fall_of(mesh: MeshState, now: float) -> Fall | None:
    """Where the failed generation of a mesh fell soon after its start; None if that says nothing of the next one."""
    if mesh.ran_at is None or mesh.set_up or _cause(mesh) != "crash":
        return None
    if mesh.cause:
        return mesh.fall or fall_of_exception(mesh.cause, mesh.detail, now - mesh.ran_at)
    root = mesh.root_cause()
    if root is None or root.exit is None:
        return None
    end, seconds = root.exit, (root.failed_at or now) - mesh.ran_at
    if end.error and end.traceback and (end.signal is None or end.asked):
        return fall_of_exception(end.error, end.traceback, seconds)
    return None if end.asked else fall_of_exit(end.exit_code, end.signal, seconds)


def note_fall(mesh: MeshState, now: float) -> None:
    """Note where the generation of a mesh that is to end fell, and whether that repeats the one before."""
    mesh.fall = fall_of(mesh, now) if mesh.failed and mesh.again is None else None
    mesh.repeated = repeated(mesh.fell_before, mesh.fall) if mesh.has_restarts_left(now) else None


def refusal(mesh: MeshState, now: float) -> str | None:
    """Why no restart follows the failure of a mesh's generation; None if `restart:` allows for one."""
    policy = mesh.plan.restart
    if mesh.time_up:
        return "no restart: its time limit is over"
    if not policy.max:
        return "no restart: it has no `restart:`"
    if not mesh.may_try_again:
        return "no restart: it would fail in the same way"
    if (cause := _cause(mesh)) not in policy.on:
        return f"no restart: its `restart.on` is [{', '.join(policy.on)}], and this is {cause}"
    if not mesh.has_restarts_left(now):
        within = "" if policy.within is None else f" within {show_duration(policy.within)}"
        return f"gave up: restarted {policy.max} of {policy.max} times{within}"
    return mesh.repeated


def policy_of(mesh: MeshState, now: float) -> str:
    """What is done about the failure of the mesh's generation, in words."""
    if mesh.state == "restarting":
        return restart_text(mesh, len(mesh.restarts) + 1)
    asked = mesh.stop is not None and mesh.cannot_start is None
    if asked and mesh.stop and mesh.plan.restart.max and not mesh.time_up:
        return f"no restart: the end was asked for by {mesh.stop.by}"
    return refusal(mesh, now) or "no restart: no host is left for it"


def restart_text(mesh: MeshState, number: int) -> str:
    """`restart 3 of 30 after 4 s`. More than the maximum are possible where only those within a time count."""
    at_most = f" of {mesh.plan.restart.max}" if number <= mesh.plan.restart.max else ""
    return f"restart {number}{at_most}" + (f" after {mesh.wait:g} s" if mesh.wait else " at once")


def _cause(mesh: MeshState) -> RestartCause:
    """The cause of a generation's failure."""
    root = None if mesh.cause else mesh.root_cause()
    return cause_of(kind_of(root) if root else failure_of_mesh(mesh).kind)
