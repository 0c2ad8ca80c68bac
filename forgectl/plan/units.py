"""The parts of a spec that become one mesh each: scripts, actors, replicas of services, the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgectl.model.plan import PRELOAD, Declaration, HangPolicy, MeshKind, Program, RestartPolicy, Unit
from forgectl.names import DRIVER

if TYPE_CHECKING:
    from forgectl.spec.model import Mesh, Restart, Spec


def units_of(spec: Spec) -> list[Unit]:
    """All units, in the order in which a plan lists their meshes."""
    units = [_unit(n, "script", s.program, s) for n, s in spec.scripts.items()]
    units += [_unit(n, "actor", a.program, a) for n, a in spec.actors.items()]
    for name, service in spec.services.items():
        units += [_unit(f"{name}.{i}", "service", service.program, service) for i in range(service.num_replicas)]
    if spec.driver is not None:
        driver = spec.driver
        policy = _policy(driver.restart)
        units.append(_driver(driver.program, dict(driver.env), driver.python, policy, driver.time_limit))
    elif spec.actors or spec.services:
        units.append(_driver(Program("resident", "(resident)"), {}, None, RestartPolicy()))
    return units


def declarations_of(spec: Spec) -> tuple[Declaration, ...]:
    """The actors and services that the driver launches before its script."""
    found = [Declaration(n, "actor", a.class_, (n,), a.args, {}) for n, a in spec.actors.items()]
    for name, s in spec.services.items():
        meshes = tuple(f"{name}.{i}" for i in range(s.num_replicas))
        found.append(Declaration(name, "service", s.class_, meshes, s.args, {"router": s.router}))
    return tuple(found)


def where(unit: Unit) -> str:
    """A unit's path in the spec; the replicas of a service share it."""
    if unit.kind == "driver":
        return "driver"
    return f"{unit.kind}s.{unit.mesh.rpartition('.')[0] if unit.kind == 'service' else unit.mesh}"


def _unit(mesh: str, kind: MeshKind, program: Program, body: Mesh) -> Unit:
    return Unit(
        mesh=mesh,
        kind=kind,
        program=program,
        procs=body.procs,
        hosts=body.hosts,
        with_gpus=body.with_gpus,
        env=dict(body.env),
        python=body.python,
        preload=tuple(body.preload),
        start_method=body.start_method,
        restart=_policy(body.restart),
        share_gpus_with=body.share_gpus_with,
        time_limit=body.time_limit,
        hang=HangPolicy(body.hang.after, body.hang.start, body.hang.do, body.hang.logs),
    )


def _policy(restart: Restart) -> RestartPolicy:
    return RestartPolicy(restart.max, restart.within, restart.backoff, restart.on)


def _driver(
    program: Program,
    env: dict[str, str],
    python: str | None,
    restart: RestartPolicy,
    time_limit: float | None = None,
) -> Unit:
    return Unit(
        mesh=DRIVER,
        kind="driver",
        program=program,
        procs=1,
        hosts=None,
        with_gpus=False,
        env=env,
        python=python,
        preload=() if program.kind == "command" else PRELOAD,
        start_method="fork",
        restart=restart,
        time_limit=time_limit,
    )
