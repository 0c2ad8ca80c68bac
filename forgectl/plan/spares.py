"""Spares: hosts that are kept without ranks until one takes the place of a host that is lost. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from forgectl.errors import BusyError, UsageError
from forgectl.model.plan import Gpu, MeshPlan, Plan
from forgectl.plan.addition import place_more

TRIES = 64
"""Most choices of spares that are tried for a mesh."""


def move_to_spares(
    plan: Plan,
    mesh: MeshPlan,
    lost: Collection[str],
    spares: Sequence[str],
    heirs: Mapping[str, str],
    gpus: Mapping[str, tuple[Gpu, ...]],
    inherited: Mapping[str, str],
    living: Iterable[MeshPlan],
) -> MeshPlan | None:
    """The mesh with a spare in the place of each host that is lost, everything else as it was; None if none fits.

    `heirs` are hosts that have taken the place of a lost one before: whatever ran together shall do so again. The other
    arguments are as in `place_more`.
    """
    if not mesh.may_move or mesh.unit.share_gpus_with:
        return None
    living = tuple(living)
    for hosts in itertools.islice(_choices(mesh.hosts, lost, spares, heirs), TRIES):
        try:
            return on_hosts(plan, mesh, hosts, gpus, inherited, living)
        except (UsageError, BusyError):
            continue
    return None


def on_hosts(
    plan: Plan,
    mesh: MeshPlan,
    hosts: tuple[str, ...],
    gpus: Mapping[str, tuple[Gpu, ...]],
    inherited: Mapping[str, str],
    living: Iterable[MeshPlan] = (),
) -> MeshPlan:
    """The same mesh on these hosts. Where it was before, its environment, and so its fork server, stays the same.

    Raises UsageError or BusyError if there is no room.
    """
    unit = dataclasses.replace(mesh.unit, hosts=hosts)
    placed = place_more(plan, unit, gpus, inherited, [m for m in living if m.mesh != mesh.mesh])
    env = {host: mesh.env.get(host, found) for host, found in placed.env.items()}
    return dataclasses.replace(placed, unit=mesh.unit, env=env)


def standing_in(
    plan: Plan, meshes: Iterable[MeshPlan], host: str, inherited: Mapping[str, str]
) -> tuple[MeshPlan, ...]:
    """The meshes as they would be if this host took the place of one of theirs, for their fork servers.

    Fork servers depend neither on the host that it is, nor on GPUs: there are none here.
    """
    found = []
    for mesh in meshes:
        if mesh.may_move and mesh.restart.max and host not in mesh.hosts:
            unit = dataclasses.replace(mesh.unit, with_gpus=False, share_gpus_with=None)
            bare = dataclasses.replace(mesh, unit=unit)
            found.append(on_hosts(_open(plan), bare, (host, *mesh.hosts[1:]), {}, inherited))
    return tuple(found)


def _open(plan: Plan) -> Plan:
    """The plan with room for any mesh on each host: whether there is room is found out when it is needed."""
    hosts = tuple(dataclasses.replace(h, slots=None) for h in plan.hosts)
    return dataclasses.replace(plan, hosts=hosts)


def _choices(
    hosts: Sequence[str], lost: Collection[str], spares: Sequence[str], heirs: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """The hosts with an heir or a spare in the place of each lost one, the first spares first."""
    known = {host: heirs[host] for host in hosts if host in lost and heirs.get(host, host) not in (*lost, *hosts)}
    rest = [host for host in hosts if host in lost and host not in known]
    free = [name for name in spares if name not in (*hosts, *known.values())]
    for chosen in itertools.permutations(free, len(rest)):
        places = known | dict(zip(rest, chosen, strict=True))
        yield tuple(places.get(host, host) for host in hosts)
