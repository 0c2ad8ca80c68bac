"""Places meshes during a run: those that code adds, and those that lost a host."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Collection

from forgectl.controller.adoption import check_driver, claimed
from forgectl.controller.records import Added, Adopted
from forgectl.controller.run_state import Run
from forgectl.controller.state import MeshState
from forgectl.errors import BusyError, UsageError
from forgectl.model.plan import MAX_RANKS, Gpu, HostPlan, MeshPlan
from forgectl.names import DRIVER, free_name
from forgectl.plan.addition import held_by, place_more, replace_lost
from forgectl.plan.sharing import sharers
from forgectl.plan.spares import move_to_spares
from forgectl.protocol.control import AddMesh

GpusOfHosts = dict[str, tuple[Gpu, ...]]


class Additions:
    """Places one mesh at a time: if two want the same GPU, the second must see that the first has it.

    `look` asks a host which GPUs it has and who holds them.
    """

    def __init__(self, look: Callable[[HostPlan], Awaitable[tuple[Gpu, ...]]]) -> None:
        self._lock = asyncio.Lock()
        self._look = look

    async def answer(self, run: Run, request: AddMesh) -> Added | Adopted:
        """The record of one more mesh, or of one that is adopted; raises ForgeError, as if there is no room."""
        unit = request.unit
        async with self._lock:
            if (orphan := claimed(run, request)) is not None:
                return Adopted(orphan.name)
            if run.ended or run.stop is not None:
                raise BusyError(f"run {run.id} is ending; no mesh can be added to it")
            if unit.procs + sum(m.plan.procs for m in run.meshes.values() if not m.ended) > MAX_RANKS:
                raise UsageError(f"mesh {unit.mesh}: a run has at most {MAX_RANKS} ranks")
            if (owner := run.meshes.get(unit.share_gpus_with or "")) is not None and owner.ended:
                raise UsageError(f"mesh {unit.mesh} is to share the GPUs of {owner.name}, which has ended")
            unit = dataclasses.replace(unit, mesh=_free_name(run, unit.mesh, named=request.named))
            gpus = await self._gpus(run) if unit.with_gpus else {}
            check_driver(run, request)  # it may have ended meanwhile
            there = tuple(host.plan for host in run.hosts.values() if not host.given_up and not host.spare)
            plan = place_more(dataclasses.replace(run.plan, hosts=there), unit, gpus, os.environ, _living(run))
            return Added(plan, request.claim, request.terms)

    async def replace(self, run: Run, mesh: MeshState) -> MeshPlan:
        """A new plan of a mesh, on hosts that are not lost; raises ForgeError if no hosts have room."""
        async with self._lock:
            lost = {name for name, host in run.hosts.items() if host.given_up} | mesh.lost
            leaving = {mesh.name, *sharers(mesh.name, _living(run))}
            gpus = await self._gpus(run, leaving) if mesh.plan.unit.with_gpus else {}
            living = _living(run)
            moved = move_to_spares(run.plan, mesh.plan, lost, run.spares, run.heirs, gpus, os.environ, living)
            return moved or replace_lost(run.plan, mesh.plan, lost, gpus, os.environ, living)

    async def _gpus(self, run: Run, leaving: Collection[str] = ()) -> GpusOfHosts:
        """Host → its GPUs and who holds them, as if the meshes `leaving` held none."""
        hosts = [host.plan for host in run.hosts.values() if not host.given_up]
        found = await asyncio.gather(*(self._look(host) for host in hosts))
        living = [mesh for mesh in _living(run) if mesh.mesh not in leaving]
        return held_by(living, {host.name: gpus for host, gpus in zip(hosts, found, strict=True)})


def _living(run: Run) -> list[MeshPlan]:
    """The meshes that hold GPUs and slots."""
    return [m.plan for m in run.meshes.values() if not m.ended]


def _free_name(run: Run, name: str, *, named: bool) -> str:
    living = {m.name for m in run.meshes.values() if not m.ended} | {DRIVER}
    if named and name in living:
        hint = "choose another mesh_name, or shut that one down"
        raise BusyError(f"run {run.id} has a mesh {name} already", hint=hint)
    return free_name(name, living)
