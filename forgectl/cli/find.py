"""Finds the run or mesh that a user names on a command line."""

from __future__ import annotations

from forgectl.controller import client, run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError, NotFoundError, UsageError
from forgectl.names import nearest


def all_living() -> list[RunDir]:
    """Runs that have not ended, oldest first."""
    return [run for run in run_dir.all_runs() if not run.has_ended]


def raise_refused() -> None:
    """Raise NotOursError if there is a run that is not read, as others may have made or touched it."""
    for refusal in run_dir.refused_runs().values():
        raise refusal


def find_run(name: str, *, ended: bool = False) -> RunDir:
    """The run of that id or name: a living one, else with `ended` the latest that has ended.

    Raises NotFoundError, UsageError if several living runs have the name, NotOursError.
    """
    runs = run_dir.all_runs()
    exact = [r for r in runs if r.run == name]
    living = [r for r in runs if r.name == name and not r.has_ended]
    over = [r for r in runs if r.name == name] if ended else []
    if exact:
        return exact[-1]
    if len(living) > 1:
        raise UsageError(f"several runs are named {name!r}: {', '.join(r.run for r in living)}", hint="give one's id")
    if living or over:
        return (living or over)[-1]
    if (refusal := run_dir.refused_runs().get(name)) is not None:
        raise refusal
    known = [r.run for r in runs if ended or not r.has_ended]
    raise NotFoundError(f"no run {name!r}", hint=_nearest(name, [*known, *(r.rpartition("-")[0] for r in known)]))


def find_mesh(name: str, *, ended: bool = False) -> tuple[RunDir, tuple[str, ...]]:
    """The run and meshes of `MESH` or `RUN/MESH`: in living runs, else with `ended` in the latest that had it.

    A service's name stands for the meshes of all its replicas. Raises as `find_run`.
    """
    if "/" in name:
        run_name, _, mesh = name.partition("/")
        run = find_run(run_name, ended=ended)
        if not (found := _called(run, mesh)):
            raise NotFoundError(f"run {run.run} has no mesh {mesh!r}", hint=_nearest(mesh, list(_meshes(run))))
        return run, found
    runs = run_dir.all_runs()
    having = [(r, found) for r in runs if (found := _called(r, name))]
    living = [(r, found) for r, found in having if not r.has_ended]
    if len(living) > 1:
        choices = ", ".join(f"{r.run}/{name}" for r, _ in living)
        raise UsageError(f"several runs have a mesh {name!r}", hint=f"say which: {choices}")
    if living:
        return living[0]
    if having and ended:
        return having[-1]
    raise_refused()  # it may be a mesh of such a run
    raise NotFoundError(f"no mesh {name!r}{' in a living run' if having else ''}", hint=_hint(name, runs, ended))


def _hint(name: str, runs: list[RunDir], ended: bool) -> str:
    if any(name in (r.run, r.name) for r in runs if ended or not r.has_ended):
        return (
            f"that is a run; use `--run {name}`" if not ended else f"that is a run; name one of its meshes: {name}/MESH"
        )
    names = [m for r in runs if ended or not r.has_ended for m in _meshes(r)]
    return _nearest(name, names)


def _called(run: RunDir, name: str) -> tuple[str, ...]:
    """The meshes of a run that a name stands for: one, or the replicas of a service."""
    meshes = _meshes(run)
    if name in meshes:
        return (name,)
    return tuple(m for m, kind in meshes.items() if kind == "service" and m.rpartition(".")[0] == name)


def _meshes(run: RunDir) -> dict[str, str]:
    """Mesh → its kind, for a run. Only the controller or the final state has the meshes that code added."""
    try:
        plan = run.read_plan()
        if not plan.may_grow:
            return {m.mesh: m.kind for m in plan.meshes}
        return {m.mesh: m.kind for m in client.document(run).meshes}
    except ForgeError:  # meshes of other runs must still be found; `forgectl status` shows this error
        return {}


def _nearest(name: str, known: list[str]) -> str:
    near = nearest(name, known)
    if near:
        return f"did you mean {near!r}?"
    return "`forgectl status` shows what runs" + ("" if not known else f": {', '.join(sorted(set(known))[:8])}")
