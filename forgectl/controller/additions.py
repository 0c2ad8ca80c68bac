"""Meshes that code adds to a run: a name that is free, and a place."""

from __future__ import annotations

import asyncio
import dataclasses
import os

from forgectl.controller.run import Run
from forgectl.errors import BusyError, UsageError
from forgectl.names import DRIVER, free_name
from forgectl.plan.model import MAX_RANKS, Gpu, MeshPlan, Unit
from forgectl.plan.placement import place_more
from forgectl.transport.facts import gpus_of


class Additions:
    """Places one mesh after the other: of two that want the same GPU the second must see that it is gone."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def place(self, run: Run, unit: Unit, *, named: bool) -> MeshPlan:
        """The plan of one more mesh; raises ForgeError with why there is no room for it."""
        async with self._turn:
            if run.ended or run.stop is not None:
                raise BusyError(f"run {run.id} is ending; no mesh can be added to it")
            if unit.procs + sum(m.plan.procs for m in run.meshes.values() if not m.ended) > MAX_RANKS:
                raise UsageError(f"mesh {unit.mesh}: a run has at most {MAX_RANKS} ranks")
            unit = dataclasses.replace(unit, mesh=_free_name(run, unit.mesh, named=named))
            gpus = await asyncio.to_thread(_free_gpus, run) if unit.with_gpus else {}
            return place_more(run.plan, unit, gpus, os.environ)


def _free_name(run: Run, name: str, *, named: bool) -> str:
    living = {m.name for m in run.meshes.values() if not m.ended} | {DRIVER}
    if named and name in living:
        hint = "choose another mesh_name, or shut that one down"
        raise BusyError(f"run {run.id} has a mesh {name} already", hint=hint)
    return free_name(name, living)


def _free_gpus(run: Run) -> dict[str, tuple[Gpu, ...]]:
    """The GPUs of each host that no living mesh of this run has."""
    taken = {g.uuid for m in run.meshes.values() if not m.ended for gpus in m.plan.gpus.values() for g in gpus}
    found = {h.name: gpus_of(h, os.environ) for h in run.plan.hosts}
    return {name: tuple(g for g in gpus if g.uuid not in taken) for name, gpus in found.items()}
