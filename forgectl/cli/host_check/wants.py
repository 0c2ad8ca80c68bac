"""What the meshes of a spec want of each host that they may land on. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forgectl.model.plan import Unit
from forgectl.plan.units import units_of

if TYPE_CHECKING:
    from forgectl.spec.model import Host, Spec

OWN = ""
"""Stands for the interpreter of a host, where a mesh names no other."""


@dataclass
class Wants:
    """What is wanted of a host: packages by interpreter, and GPUs if any. `ranks`: of others than a driver's."""

    packages: dict[str, set[str]] = field(default_factory=dict)
    gpus: bool = False
    ranks: bool = False
    actors: bool = False


def wants_of(spec: Spec) -> dict[str, Wants]:
    """By host; a mesh that names none may land on any that takes it."""
    wants = {host.name: Wants({OWN: {"psutil"}}) for host in spec.all_hosts}
    for unit in units_of(spec):
        for host in _may_land(unit, spec):
            want = wants[host.name]
            want.packages.setdefault(unit.python or OWN, set()).update(_packages(unit, spec))
            want.gpus = want.gpus or unit.with_gpus
            want.ranks = want.ranks or unit.kind != "driver"
            want.actors = want.actors or _has_actors(unit, spec)
    return wants


def _may_land(unit: Unit, spec: Spec) -> list[Host]:
    if unit.kind == "driver":
        return [host for host in spec.all_hosts if host.local][:1]
    if isinstance(unit.hosts, tuple):
        return [host for host in spec.hosts if host.name in unit.hosts]
    return [host for host in spec.hosts if host.slots != 0 and not (unit.with_gpus and host.gpus in ("none", 0, ()))]


def _has_actors(unit: Unit, spec: Spec) -> bool:
    return unit.program.kind == "actor" or (unit.kind == "driver" and bool(spec.actors or spec.services))


def _packages(unit: Unit, spec: Spec) -> set[str]:
    """By the names that pip has for them."""
    torch = {"torch"} if "torch" in unit.preload else set()
    return torch | ({"pyzmq", "cloudpickle"} if _has_actors(unit, spec) else set())
