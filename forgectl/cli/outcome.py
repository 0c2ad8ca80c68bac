"""How a run, or some of its meshes, ended: in words, and as an exit code."""

from __future__ import annotations

from collections.abc import Collection

from forgectl.model.status import MeshStatus, RunStatus


def outcome(status: RunStatus, meshes: Collection[str] | None = None, *, ago: bool = False) -> str:
    """A line about the run, or with `meshes` about each of them: `trainer failed: rank 0 …`; `ago`: and when."""
    if meshes is not None:
        return "\n".join(_line(m.mesh, m, m.since if ago else None) for m in status.meshes if m.mesh in meshes)
    if status.error is not None:
        return f"run {status.run} failed: {status.error.message}"
    decisive = next((m for m in status.meshes if m.state == status.state and m.reason), None)
    why = f": {decisive.mesh}: {decisive.reason}" if decisive else ""
    why = f" by {status.stopped_by}" if status.state == "stopped" and status.stopped_by else why
    return f"run {status.run} {status.state}{_ago(status.ended_at if ago else None)}{why}"


def _line(name: str, mesh: MeshStatus, since: str | None) -> str:
    how, reason = f"{name} {mesh.state}{_ago(since)}", mesh.reason or ""
    if reason.startswith(f"{mesh.state} "):  # `stopped: stopped by Ctrl-C` would stutter
        return how + reason.removeprefix(mesh.state)
    return f"{how}: {reason}" if reason else how


def _ago(since: str | None) -> str:
    if since is None:
        return ""
    from forgectl.cli.views.render import age

    return f" {age(since)} ago"


def exit_code(status: RunStatus, meshes: Collection[str] | None = None) -> int:
    """The run's exit code; with `meshes` that of the first of them that did not succeed, else 0."""
    if meshes is None:
        return status.exit_code or 0
    ended = sorted((m for m in status.meshes if m.mesh in meshes), key=lambda m: m.since or "")
    return next((code for m in ended if (code := m.exit_code)), 0)
