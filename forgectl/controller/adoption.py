"""Which mesh of an earlier driver a driver adopts, if it launches the same again. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from forgectl.controller.run_state import Run
from forgectl.controller.state import MeshState
from forgectl.errors import BusyError, NotFoundError, UsageError
from forgectl.names import DRIVER
from forgectl.protocol.control import AddMesh


def claimed(run: Run, request: AddMesh) -> MeshState | None:
    """The mesh that the request adopts; None if it asks for a new one.

    Raises UsageError if the mesh lives, but what is asked for differs: its state is not thrown away unasked.
    """
    check_driver(run, request)
    mesh = next((m for m in run.meshes.values() if _may_adopt(m) and _claim(m) == request.claim), None)
    if mesh is None and request.only_adopt:
        raise NotFoundError(f"no mesh of run {run.id} is left from the launch {request.claim}")
    if mesh is None:
        return None
    if changed := list(_differences(mesh, request)):
        raise UsageError(
            f"mesh {mesh.name} lives on from an earlier driver, and this launch differs in {', '.join(changed)}",
            hint=f"launch the same again to adopt it, give the new one another mesh_name, or `forgectl shutdown "
            f"{run.id}/{mesh.name}` ends it",
        )
    return mesh


def check_driver(run: Run, request: AddMesh) -> None:
    """Raise BusyError if the driver that asks has ended: nobody would have the mesh."""
    driver = run.meshes.get(DRIVER)
    if driver is not None and driver.generation != request.driver:
        raise BusyError(f"generation {request.driver} of the driver has ended; no mesh is added for it")


def _may_adopt(mesh: MeshState) -> bool:
    return mesh.orphan and not mesh.ended and mesh.stop is None


def _claim(mesh: MeshState) -> str:
    """What the spec declares has its name as the claim."""
    return mesh.claim if mesh.added else mesh.name


def _differences(mesh: MeshState, request: AddMesh) -> Iterator[str]:
    """What was asked for then and is asked for now, where they differ."""
    before, now = mesh.plan.unit, dataclasses.replace(request.unit, mesh=mesh.name)
    if before.program != now.program:
        yield f"the class ({before.program.target} before)"
    for field in dataclasses.fields(before):
        if field.name != "program" and getattr(before, field.name) != getattr(now, field.name):
            yield f"the option {field.name}"
    old, new = mesh.terms, request.terms
    if old is not None and new is not None:
        yield from sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
