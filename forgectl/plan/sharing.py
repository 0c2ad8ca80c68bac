"""Meshes that use the GPUs of another mesh: their hosts and GPUs follow from those. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from forgectl.errors import UsageError
from forgectl.model.plan import Gpu, MeshPlan, Unit
from forgectl.plan.allotment import Allotment


def share(unit: Unit, owner: Allotment) -> Allotment:
    """The share that a mesh gets of another one's hosts and GPUs; raises UsageError if its `hosts` do not fit them.

    It runs on as many of the owner's hosts as its processes spread evenly over, or on those it asks for. Local rank i
    gets the owner's GPU i there, modulo their number. Replicas of a service take hosts and GPUs in turn.
    """
    hosts, turn = _hosts(unit, owner.hosts)
    each = unit.procs // len(hosts)
    return Allotment(hosts, {host: _gpus(owner.gpus[host], turn * each, each) for host in hosts})


def share_all(
    units: Iterable[Unit], allotted: Mapping[str, Allotment]
) -> tuple[dict[str, Allotment], list[tuple[Unit, str]]]:
    """The shares of all units that share, whatever their order, and those that do not fit, with the reasons.

    Units whose owner found no room itself are left out.
    """
    found, misfits = dict(allotted), list[tuple[Unit, str]]()
    left = [unit for unit in units if unit.share_gpus_with]
    while ready := [unit for unit in left if unit.share_gpus_with in found]:
        left = [unit for unit in left if unit.share_gpus_with not in found]
        for unit in ready:
            try:
                found[unit.mesh] = share(unit, found[unit.share_gpus_with or ""])
            except UsageError as e:
                misfits.append((unit, e.message))
    return found, misfits


def owner_of(unit: Unit, living: Iterable[MeshPlan]) -> Allotment:
    """What the mesh has whose GPUs a unit shares; raises UsageError if it does not live, or has none."""
    meshes = {m.mesh: m for m in living}
    owner = meshes.get(unit.share_gpus_with or "")
    if owner is None:
        there = ", ".join(name for name, m in meshes.items() if any(m.gpus.values())) or "none"
        raise UsageError(
            f"mesh {unit.mesh} is to share the GPUs of {unit.share_gpus_with}, which does not run in this run; "
            f"meshes with GPUs: {there}",
            hint="a mesh that has ended, or that is of another run, has no GPUs to share",
        )
    if not any(owner.gpus.values()):
        raise UsageError(f"mesh {unit.mesh} is to share the GPUs of {owner.mesh}, which has none")
    return Allotment(owner.hosts, owner.gpus)


def sharers(mesh: str, living: Iterable[MeshPlan]) -> set[str]:
    """The meshes that share the GPUs of a mesh, or of one that shares them."""
    found, meshes = {mesh}, list(living)
    while more := {m.mesh for m in meshes if m.unit.share_gpus_with in found} - found:
        found |= more
    return found - {mesh}


def _hosts(unit: Unit, there: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """The hosts of a unit, and how many replicas before it take GPUs of the same hosts."""
    number = int(unit.mesh.rpartition(".")[2]) if unit.kind == "service" else 0
    if isinstance(unit.hosts, tuple):
        if elsewhere := [name for name in unit.hosts if name not in there]:
            raise UsageError(f"{unit.share_gpus_with} has no GPUs on {elsewhere[0]}; it is on {', '.join(there)}")
        return unit.hosts, number
    count = unit.hosts or max(n for n in range(1, len(there) + 1) if unit.procs % n == 0)
    if count > len(there):
        raise UsageError(f"wants {count} hosts, but {unit.share_gpus_with} is on {len(there)}: {', '.join(there)}")
    chosen = {(number * count + i) % len(there) for i in range(count)}
    return tuple(there[i] for i in sorted(chosen)), number * count // len(there)


def _gpus(gpus: tuple[Gpu, ...], first: int, count: int) -> tuple[Gpu, ...]:
    return tuple(gpus[(first + i) % len(gpus)] for i in range(min(count, len(gpus))))
