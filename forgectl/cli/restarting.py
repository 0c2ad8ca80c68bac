"""Restarts meshes of a run in waves, and prints how each came up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from forgectl.cli.outcome import outcome
from forgectl.cli.views import render
from forgectl.cli.watch import RunWatch
from forgectl.controller.run_dir import RunDir
from forgectl.errors import InternalError, NotFoundError, UsageError
from forgectl.model.plan import Plan
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.names import service_of
from forgectl.protocol.control import Restart

BY = "forgectl restart"


def restart_meshes(run: RunDir, named: tuple[str, ...] | None, grace: float) -> int:
    """Restart meshes of a run (None: all that live); returns 0 when they are up, else the code of one that failed."""
    watch = RunWatch(run)
    steps = watch.steps()
    status = next(s for s in steps if s is not None)
    for wave in waves(_chosen(run.read_plan(), status, named)):
        meshes = [m for m in status.meshes if m.mesh in wave]
        watch.restart(Restart({m.mesh: m.generation for m in meshes if m.state != "pending"}, grace, BY))
        # One that has not begun yet, or waits for a restart, is as good as restarted once it is up.
        began = {m.mesh: m.generation - (m.state in ("pending", "restarting")) for m in meshes}
        status = _until_up(steps, began)
        if code := _print_ends(status, began):
            return code
    return 0


def waves(meshes: Sequence[MeshStatus]) -> list[tuple[str, ...]]:
    """Which meshes are restarted together: all at once, but of each service only one replica at a time."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    replicas: Counter[str] = Counter()
    for mesh in meshes:
        service = service_of(mesh.mesh, mesh.kind) or mesh.mesh
        found[replicas[service]].append(mesh.mesh)
        replicas[service] += 1
    return [tuple(found[number]) for number in sorted(found)]


def _chosen(plan: Plan, status: RunStatus, named: tuple[str, ...] | None) -> list[MeshStatus]:
    """The meshes to restart. Raises UsageError for drivers, NotFoundError for what has ended."""
    anew = f"`forgectl launch {status.spec or 'SPEC'} --name {status.name} --replace` starts the whole run anew"
    resident = {m.mesh for m in plan.meshes if m.program.kind == "resident"}
    drivers = [m.mesh for m in status.meshes if m.kind == "driver"]
    if [d for d in drivers if (named is None and d not in resident) or (named and d in named)]:
        message = f"the driver of run {status.run} cannot be restarted: it made the other meshes"
        raise UsageError(message, hint=f"name them one by one; {anew}" if named is None else anew)
    meshes = [m for m in status.meshes if m.mesh not in drivers and (named is None or m.mesh in named)]
    ended = [m for m in meshes if m.ended]
    if ended and (named is not None or len(ended) == len(meshes)):
        raise NotFoundError(
            f"{outcome(status, [m.mesh for m in ended], ago=True)}; only living meshes restart", hint=anew
        )
    if not meshes:
        raise NotFoundError(f"run {status.run} has no mesh to restart")
    return [m for m in meshes if not m.ended]


def _until_up(steps: Iterator[RunStatus | None], began: dict[str, int]) -> RunStatus:
    """The first state in which each mesh is up in a later generation than `began` has for it, or has ended."""
    for status in steps:
        if status is not None and all(_is_done(m, began[m.mesh]) for m in status.meshes if m.mesh in began):
            return status
    raise InternalError("the run ended without the states of its meshes")


def _is_done(mesh: MeshStatus, generation: int) -> bool:
    return mesh.ended or (mesh.up and mesh.generation > generation)


def _print_ends(status: RunStatus, began: dict[str, int]) -> int:
    """Print the new state of each mesh, and why one did not come up; returns the exit code of the first such one."""
    code = 0
    for mesh in (m for m in status.meshes if m.mesh in began):
        if mesh.ended and mesh.generation == began[mesh.mesh]:
            line, code = f"{mesh.mesh} {mesh.state} before it could be restarted", code or mesh.exit_code or 66
        else:
            line, code = f"{mesh.mesh} {mesh.state}: generation {mesh.generation}", code or mesh.exit_code
        render.show(render.plain(f"{status.run}/{line}"))
        if mesh.exit_code and (report := render.failure_report(mesh)):
            render.stderr().print(report)
    return code
