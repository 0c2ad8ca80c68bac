"""What the meshes of a spec need on each host where they may be placed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forgectl.model.plan import Unit
from forgectl.plan.units import units_of

if TYPE_CHECKING:
    from forgectl.spec.model import Host, Spec

OWN = ""
"""Stands for the host's own interpreter, for meshes that name no other."""


@dataclass
class Wants:
    """What a host needs: packages by interpreter. `gpus`: a mesh needs GPUs; `ranks`: a mesh other than a driver."""

    packages: dict[str, set[str]] = field(default_factory=dict)
    gpus: bool = False
    ranks: bool = False
    actors: bool = False


def wants_of(spec: Spec) -> dict[str, Wants]:
    """Host → what it needs. A mesh that names no hosts may be placed on any host that takes it."""
    wants = {host.name: Wants({OWN: {"psutil"}}) for host in spec.all_hosts}
    for unit in units_of(spec):
        for host in _possible_hosts(unit, spec):
            want = wants[host.name]
            want.packages.setdefault(unit.python or OWN, set()).update(_packages(unit, spec))
            want.gpus = want.gpus or unit.with_gpus
            want.ranks = want.ranks or unit.kind != "driver"
            want.actors = want.actors or _has_actors(unit, spec)
    return wants


def _possible_hosts(unit: Unit, spec: Spec) -> list[Host]:
    if unit.kind == "driver":
        return [host for host in spec.all_hosts if host.local][:1]
    if isinstance(unit.hosts, tuple):
        return [host for host in spec.hosts if host.name in unit.hosts]
    return [
        host
        for host in spec.hosts
        if host.slots != 0 and not ((unit.with_gpus or unit.share_gpus_with) and host.gpus in ("none", 0, ()))
    ]


def _has_actors(unit: Unit, spec: Spec) -> bool:
    return unit.program.kind == "actor" or (unit.kind == "driver" and bool(spec.actors or spec.services))


def _packages(unit: Unit, spec: Spec) -> set[str]:
    """The pip names of the packages that a mesh needs."""
    torch = {"torch"} if "torch" in unit.preload else set()
    return torch | ({"pyzmq", "cloudpickle"} if _has_actors(unit, spec) else set())
