"""Places a spec on hosts: every rank gets its host, its GPUs and its environment. Pure and deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from forgectl.errors import SpecError, SpecProblem
from forgectl.model.environment import host_environment, rank_environment
from forgectl.model.plan import HookPlan, HostFacts, HostPlan, MeshPlan, Plan, RankPlan, Unit
from forgectl.plan.allotment import Allotment, Pool, RoomRequest, allot
from forgectl.plan.sharing import share_all
from forgectl.plan.shortage import busy, never_fits
from forgectl.plan.slots import Slots
from forgectl.plan.slots import never_fits as never_finds_room
from forgectl.plan.units import declarations_of, units_of, where

if TYPE_CHECKING:
    from forgectl.spec.model import Host, Spec


def place(
    spec: Spec, facts: Mapping[str, HostFacts], *, python: str, inherited: Mapping[str, str] | None = None
) -> Plan:
    """The plan of `spec` on its hosts.

    `facts`, by host name, must have all of `spec.all_hosts`. `python` is the interpreter of local hosts that name none;
    `inherited` is the launching environment. Raises SpecError with everything that can never fit, else BusyError if
    others have taken the GPUs.
    """
    units = units_of(spec)
    plan = _assemble(spec, facts, units, _allot(spec, facts, units), python, inherited or {})
    _refuse_small_spares(spec, facts, plan)
    return plan


def _allot(spec: Spec, facts: Mapping[str, HostFacts], units: list[Unit]) -> dict[str, Allotment]:
    problems = _too_few_hosts(spec, units)
    hopeless = {p.where.removesuffix(".hosts") for p in problems}
    requests = [(u, RoomRequest(u.mesh, where(u), u.procs, u.hosts)) for u in units if where(u) not in hopeless]
    hosts = spec.hosts[: len(spec.hosts) - spec.spares]
    caps = {h.name: h.slots for h in hosts if h.slots is not None}
    pool, hint = Pool({h.name: facts[h.name].gpus for h in hosts}, caps=caps), None
    wanting_gpus = [request for unit, request in requests if unit.with_gpus]
    with_gpus = allot(wanting_gpus, pool.free())
    if isinstance(with_gpus, list):
        even_if_all_were_free = allot(wanting_gpus, pool)
        if isinstance(even_if_all_were_free, list):
            problems += [spec.problem(*p) for p in never_fits(even_if_all_were_free, pool)]
            if pool.size == 0:
                hint = (
                    "without with_gpus (of `run`: --gpus) it runs on CPUs; a host's `gpus: N` declares accelerators "
                    "that NVML does not see"
                )
    slots = Slots.of({h.name: h.slots for h in hosts})
    neither = [r for u, r in requests if not u.with_gpus and not u.share_gpus_with and u.kind != "driver"]
    without = allot(neither, slots)
    if isinstance(without, list):
        problems += [spec.problem(*p) for p in never_finds_room(without, slots)]
    if isinstance(with_gpus, dict):
        with_gpus, misfits = share_all(units, with_gpus)
        problems += {where(u): spec.problem(f"{where(u)}.hosts", text) for u, text in misfits}.values()
    if problems:
        raise SpecError(spec.source, sorted(problems, key=lambda p: (p.line, p.column)), hint=hint)
    if isinstance(with_gpus, list):
        raise busy(with_gpus, pool)
    assert not isinstance(without, list)
    return with_gpus | without | _of_driver(spec, units)


def gpus_needed(meshes: Iterable[MeshPlan]) -> int:
    """How many GPUs a host needs to take the place of any host of these meshes."""
    used: dict[str, set[str]] = {}
    for mesh in meshes:
        if mesh.may_move and mesh.restart.max:
            for host, gpus in mesh.gpus.items():
                used.setdefault(host, set()).update(g.uuid for g in gpus)
    return max(map(len, used.values()), default=0)


def _refuse_small_spares(spec: Spec, facts: Mapping[str, HostFacts], plan: Plan) -> None:
    """Raise SpecError if a spare has too few GPUs, in use or not, for the place of any other host."""
    needed = gpus_needed(plan.meshes)
    small = [f"{h.name} has {len(facts[h.name].gpus)}" for h in spec.spare_hosts if len(facts[h.name].gpus) < needed]
    if small:
        message = f"a spare needs {needed} GPUs to take the place of any other host, and {', '.join(small)}"
        raise SpecError(spec.source, [spec.problem("spares", message)])


def _of_driver(spec: Spec, units: list[Unit]) -> dict[str, Allotment]:
    """The driver runs on the first local host and takes neither GPUs nor slots."""
    hosts = tuple(h.name for h in spec.all_hosts if h.local)[:1]
    return {u.mesh: Allotment(hosts, dict.fromkeys(hosts, ())) for u in units if u.kind == "driver"}


def _too_few_hosts(spec: Spec, units: list[Unit]) -> list[SpecProblem]:
    hosts = spec.hosts[: len(spec.hosts) - spec.spares]
    names = ", ".join(h.name for h in hosts[:8]) + (f", besides {spec.spares} of spares" if spec.spares else "")
    short = {
        f"{where(u)}.hosts": f"wants {u.hosts} hosts, but the spec has {len(hosts)}: {names}"
        for u in units
        if isinstance(u.hosts, int) and u.hosts > len(hosts)
    }
    return [spec.problem(*problem) for problem in short.items()]


def _assemble(
    spec: Spec,
    facts: Mapping[str, HostFacts],
    units: list[Unit],
    allotments: Mapping[str, Allotment],
    python: str,
    inherited: Mapping[str, str],
) -> Plan:
    used = {name for a in allotments.values() for name in a.hosts}
    code_may_add = any(u.kind == "driver" for u in units)
    may_move = any(u.restart.max and not isinstance(u.hosts, tuple) for u in units)  # to a host without ranks now
    spares = tuple(h.name for h in spec.spare_hosts)
    used.update(spares)
    hosts = [h for h in spec.all_hosts if h.name in used or code_may_add or may_move] or list(spec.hosts[:1])
    one_machine = len({facts[h.name].network or facts[h.name].machine for h in hosts}) == 1
    host_plans = {h.name: _host_plan(h, facts[h.name], python, one_machine) for h in hosts}
    crowd = Counter(facts[name].machine for u in units for name in _rank_hosts(u, allotments[u.mesh]))
    meshes = []
    for unit in units:
        allotment = allotments[unit.mesh]
        ranks = {name: crowd[facts[name].machine] for name in allotment.hosts}
        env = environments(spec.env, unit, host_plans, ranks, inherited, spec.secrets)
        meshes.append(mesh_plan(unit, allotment, env, host_plans, str(spec.workdir), spec.secrets))
    return Plan(
        name=spec.name,
        spec=spec.source,
        workdir=str(spec.workdir),
        lease=spec.lease,
        log_limit=spec.log_limit,
        hosts=tuple(host_plans.values()),
        meshes=tuple(meshes),
        secrets=spec.secrets,
        env=dict(spec.env),
        declared=declarations_of(spec),
        sync=spec.sync,
        sync_limit=spec.sync_limit,
        spares=spares,
        on_failure=spec.on_failure,
        on=HookPlan(spec.on.commands, str(spec.folder), spec.on.timeout) if spec.on else None,
    )


def _host_plan(host: Host, facts: HostFacts, python: str, one_machine: bool) -> HostPlan:
    return HostPlan(
        name=host.name,
        local=host.local,
        python=host.python or (python if host.local else "python3"),
        address="127.0.0.1" if one_machine else host.address or "".join(facts.addresses[:1]),
        ssh=host.ssh,
        env=dict(host.env) or None,
        gpus=host.gpus,
        cores=facts.cores,
        slots=host.slots,
        root=facts.root,
        workdir=facts.workdir,
    )


def environments(
    env: Mapping[str, str],
    unit: Unit,
    hosts: Mapping[str, HostPlan],
    ranks: Mapping[str, int],
    inherited: Mapping[str, str],
    secrets: tuple[str, ...],
) -> dict[str, dict[str, str]]:
    """By host, the variables that a mesh's ranks share there; `ranks` counts ranks by host, `env` is the spec's."""
    return {
        name: host_environment(
            env,
            hosts[name].env or {},
            unit.env,
            host=name,
            cores=hosts[name].cores,
            ranks=count,
            inherited=inherited if hosts[name].local else {},  # elsewhere agents start from another environment
            secrets=secrets,
        )
        for name, count in ranks.items()
    }


def mesh_plan(
    unit: Unit,
    allotment: Allotment,
    env: dict[str, dict[str, str]],
    host_plans: Mapping[str, HostPlan],
    workdir: str,
    secrets: tuple[str, ...],
) -> MeshPlan:
    """The plan of a unit in its allotment."""
    return MeshPlan(
        unit=unit,
        workdir=workdir,
        hosts=allotment.hosts,
        ranks=tuple(_ranks(unit, allotment)),
        env=env,
        gpus=allotment.gpus,
        python={name: unit.python or host_plans[name].python for name in allotment.hosts},
        secrets=secrets,
    )


def _rank_hosts(unit: Unit, allotment: Allotment) -> list[str]:
    """The host of each rank, host by host as in torchrun: a host's index is its group rank."""
    each = unit.procs // len(allotment.hosts)
    return [name for name in allotment.hosts for _ in range(each)]


def _ranks(unit: Unit, allotment: Allotment) -> Iterator[RankPlan]:
    each = unit.procs // len(allotment.hosts)
    for rank, host in enumerate(_rank_hosts(unit, allotment)):
        group_rank, local_rank = divmod(rank, each)
        gpus = allotment.gpus[host]
        env = rank_environment(
            mesh=unit.mesh,
            rank=rank,
            local_rank=local_rank,
            world_size=unit.procs,
            local_world_size=each,
            group_rank=group_rank,
            group_world_size=len(allotment.hosts),
            max_restarts=unit.restart.max,
            gpus=gpus,
        )
        own = (gpus[local_rank % len(gpus)].visible,) if gpus else ()
        yield RankPlan(rank, local_rank, host, own, env)
