"""What of a spec becomes one mesh each: scripts, actors, the replicas of services, the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgectl.plan.model import MeshKind, Program, RestartPolicy, StartMethod

if TYPE_CHECKING:
    from forgectl.spec.model import Driver, Mesh, Spec


@dataclass(frozen=True)
class Unit:
    """One mesh that is to be placed. `where` is its place in the spec; a service's replicas share theirs."""

    mesh: str
    kind: MeshKind
    where: str
    program: Program
    procs: int
    hosts: tuple[str, ...] | int | None
    with_gpus: bool
    env: dict[str, str]
    python: str | None
    preload: tuple[str, ...]
    start_method: StartMethod
    restart: RestartPolicy


def units_of(spec: Spec) -> list[Unit]:
    """All units, in the order in which a plan lists their meshes."""
    units = [_unit(n, "script", f"scripts.{n}", s.program, s) for n, s in spec.scripts.items()]
    for name, actor in spec.actors.items():
        units.append(_unit(name, "actor", f"actors.{name}", actor.program, actor))
    for name, service in spec.services.items():
        program, where = service.program, f"services.{name}"
        units += [_unit(f"{name}.{i}", "service", where, program, service) for i in range(service.num_replicas)]
    if spec.driver is not None:
        units.append(_driver(spec.driver))
    return units


def _unit(mesh: str, kind: MeshKind, where: str, program: Program, body: Mesh) -> Unit:
    return Unit(
        mesh=mesh,
        kind=kind,
        where=where,
        program=program,
        procs=body.procs,
        hosts=body.hosts,
        with_gpus=body.with_gpus,
        env=dict(body.env),
        python=body.python,
        preload=tuple(body.preload),
        start_method=body.start_method,
        restart=RestartPolicy(body.restart.max, body.restart.within),
    )


def _driver(driver: Driver) -> Unit:
    return Unit(
        mesh="driver",
        kind="driver",
        where="driver",
        program=driver.program,
        procs=1,
        hosts=None,
        with_gpus=False,
        env=dict(driver.env),
        python=driver.python,
        preload=() if driver.program.kind == "command" else ("torch",),
        start_method="fork",
        restart=RestartPolicy(),
    )
