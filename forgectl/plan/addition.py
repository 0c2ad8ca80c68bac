"""Placement of later meshes of a run: those that code adds, and those that lost a host. Pure, like placement."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from forgectl.errors import BusyError, UsageError
from forgectl.model.plan import Gpu, HostPlan, MeshPlan, Plan, Unit
from forgectl.plan.allotment import Allotment, Pool, RoomRequest, allot
from forgectl.plan.placement import environments, mesh_plan
from forgectl.plan.sharing import owner_of, share
from forgectl.plan.shortage import busy, never_fits
from forgectl.plan.slots import Slots
from forgectl.plan.slots import never_fits as never_finds_room
from forgectl.plan.units import where


def place_more(
    plan: Plan,
    unit: Unit,
    gpus: Mapping[str, tuple[Gpu, ...]],
    inherited: Mapping[str, str],
    living: Iterable[MeshPlan] = (),
) -> MeshPlan:
    """Place one more mesh of a run: on the first hosts with room, or on those it names.

    `gpus` are those of each host with their holders; `living` are the run's meshes, which take slots. Raises
    UsageError if it can never fit, or if the mesh whose GPUs it is to share is not among `living`; BusyError if others
    hold the GPUs or the run's meshes take the slots.
    """
    _check_hosts(plan, unit)
    living = tuple(living)
    if unit.share_gpus_with:
        allotment = _shared(unit, living)
    else:
        allotment = (_gpus_for if unit.with_gpus else _slots_for)(unit, plan.hosts, gpus, living)
    ranks = dict.fromkeys(allotment.hosts, unit.procs // len(allotment.hosts))
    hosts = {h.name: h for h in plan.hosts}
    env = environments(plan.env, unit, hosts, ranks, inherited, plan.secrets)
    return mesh_plan(unit, allotment, env, hosts, plan.workdir, plan.secrets)


def replace_lost(
    plan: Plan,
    mesh: MeshPlan,
    lost: Collection[str],
    gpus: Mapping[str, tuple[Gpu, ...]],
    inherited: Mapping[str, str],
    living: Iterable[MeshPlan] = (),
) -> MeshPlan:
    """Place the same mesh, as its spec asks, on hosts that are not lost.

    `gpus` and `living` are as in `place_more`; `gpus` includes the mesh's own. Raises UsageError if it cannot run
    elsewhere, BusyError if there is no room at present.
    """
    wish, gone = mesh.unit.hosts, ", ".join(h.name for h in plan.hosts if h.name in lost)
    if mesh.kind == "driver":
        raise UsageError("the driver runs on the launching machine and nowhere else")
    if isinstance(wish, tuple) and (named := [name for name in wish if name in lost]):
        hint = "hosts: N, or no hosts at all, would let it restart elsewhere"
        raise UsageError(f"mesh {mesh.mesh} is to run on {', '.join(wish)}, and {', '.join(named)} is lost", hint=hint)
    left = dataclasses.replace(plan, hosts=tuple(h for h in plan.hosts if h.name not in lost))
    try:
        return place_more(left, mesh.unit, gpus, inherited, [m for m in living if m.mesh != mesh.mesh])
    except (UsageError, BusyError) as e:
        are = "are" if "," in gone else "is"
        raise type(e)(f"mesh {mesh.mesh} finds no place now that {gone} {are} lost: {e.message}", hint=e.hint) from None


def _check_hosts(plan: Plan, unit: Unit) -> None:
    there = [h.name for h in plan.hosts]
    open_to_all = [h.name for h in plan.hosts if h.slots != 0]
    wanted = unit.hosts
    if isinstance(wanted, tuple) and (unknown := [n for n in wanted if n not in there]):
        raise UsageError(f"mesh {unit.mesh}: no host {', '.join(unknown)} in this run; it has {', '.join(there)}")
    if isinstance(wanted, tuple) and (closed := [n for n in wanted if n not in open_to_all]):
        hint = "a driver that has no local host among `hosts` runs on this machine; list local there for other meshes"
        raise UsageError(f"mesh {unit.mesh}: host {closed[0]} takes no ranks, as it has no slots", hint=hint)
    count = len(wanted) if isinstance(wanted, tuple) else wanted or 1
    if count > len(open_to_all):
        few = f"has {len(open_to_all)}: {', '.join(open_to_all[:8])}" if open_to_all else "has none for it"
        raise UsageError(f"mesh {unit.mesh} wants {count} host{'s' * (count > 1)}, but the run {few}")
    if unit.procs % count:
        raise UsageError(f"mesh {unit.mesh}: {unit.procs} processes cannot be spread evenly over {count} hosts")


def held_by(meshes: Iterable[MeshPlan], gpus: Mapping[str, tuple[Gpu, ...]]) -> dict[str, tuple[Gpu, ...]]:
    """The GPUs of hosts, where each GPU of one of `meshes` has that mesh as its holder, not one that shares it."""
    meshes = sorted(meshes, key=lambda m: m.unit.share_gpus_with is None)  # the last one counts
    holders = {gpu.uuid: f"mesh {m.mesh} of this run" for m in meshes for found in m.gpus.values() for gpu in found}
    return {
        host: tuple(dataclasses.replace(g, holder=holders[g.uuid]) if g.uuid in holders else g for g in found)
        for host, found in gpus.items()
    }


def _shared(unit: Unit, living: Sequence[MeshPlan]) -> Allotment:
    try:
        return share(unit, owner_of(unit, living))
    except UsageError as e:
        raise UsageError(f"{where(unit)}.share_gpus_with: {e.message}", hint=e.hint) from None


def _gpus_for(
    unit: Unit, hosts: Sequence[HostPlan], gpus: Mapping[str, tuple[Gpu, ...]], living: Sequence[MeshPlan]
) -> Allotment:
    given = Counter(host for host, _ in {(h, g.uuid) for mesh in living for h, gpus in mesh.gpus.items() for g in gpus})
    found = {h.name: tuple(gpus.get(h.name, ())) for h in hosts}
    slots = {h.name: h.slots for h in hosts if h.slots is not None}
    left = Pool(found, caps={name: max(0, count - given[name]) for name, count in slots.items()}).free()
    whole = Pool(found, caps=slots)
    request = RoomRequest(unit.mesh, where(unit), unit.procs, unit.hosts)
    allotments = allot([request], left)
    if isinstance(allotments, dict):
        return allotments[unit.mesh]
    never = allot([request], whole)
    if isinstance(never, list):
        raise UsageError("; ".join(f"{place}: {what}" for place, what in never_fits(never, whole)))
    raise busy(allotments, whole)


def _slots_for(
    unit: Unit, hosts: Sequence[HostPlan], gpus: Mapping[str, tuple[Gpu, ...]], living: Sequence[MeshPlan]
) -> Allotment:
    without = (m for m in living if m.kind != "driver" and not any(m.gpus.values()))
    taken = Counter(rank.host for mesh in without for rank in mesh.ranks)
    whole = {h.name: h.slots for h in hosts}
    left = Slots.of({name: None if slots is None else max(0, slots - taken[name]) for name, slots in whole.items()})
    request = RoomRequest(unit.mesh, where(unit), unit.procs, unit.hosts)
    allotments = allot([request], left)
    if isinstance(allotments, dict):
        return allotments[unit.mesh]
    message = "; ".join(f"{place}: {what}" for place, what in never_finds_room(allotments, left))
    if isinstance(allot([request], Slots.of(whole)), list):
        raise UsageError(message)
    raise BusyError(f"{message}, beside the run's other meshes", hint="shut one of them down first")
