"""Places a spec on hosts: every rank gets its host, its GPUs and its environment. Pure and deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from forgectl.errors import SpecError, SpecProblem, UsageError
from forgectl.plan.allotment import Allotment, Pool, Request, allot
from forgectl.plan.environment import host_environment, rank_environment
from forgectl.plan.model import Gpu, HostFacts, HostPlan, MeshPlan, Plan, RankPlan, Unit
from forgectl.plan.shortage import busy, never_fits
from forgectl.plan.units import declarations_of, units_of

if TYPE_CHECKING:
    from forgectl.spec.model import Host, Spec


def place(
    spec: Spec, facts: Mapping[str, HostFacts], *, python: str, inherited: Mapping[str, str] | None = None
) -> Plan:
    """The plan of `spec` on its hosts, whose facts are given by name.

    `python` is the interpreter of local hosts that name none; `inherited` the launching environment. Raises
    SpecError with everything that can never fit, else BusyError where GPUs are taken by others.
    """
    units = units_of(spec)
    pool = Pool({h.name: facts[h.name].gpus for h in spec.hosts})
    allotments = _allot_gpus(spec, units, pool)
    for unit in units:
        if not unit.with_gpus:
            hosts = _cpu_hosts(spec, unit)
            allotments[unit.mesh] = Allotment(hosts, dict.fromkeys(hosts, ()))
    return _assemble(spec, facts, units, allotments, python, inherited or {})


def _allot_gpus(spec: Spec, units: list[Unit], pool: Pool) -> dict[str, Allotment]:
    problems = _too_few_hosts(spec, units)
    hopeless = {p.where.removesuffix(".hosts") for p in problems}
    requests = [Request(u.mesh, u.where, u.procs, u.hosts) for u in units if u.with_gpus and u.where not in hopeless]
    allotments, hint = allot(requests, pool.free()), None
    if isinstance(allotments, list):
        even_if_all_were_free = allot(requests, pool)
        if isinstance(even_if_all_were_free, list):
            problems += [spec.problem(*p) for p in never_fits(even_if_all_were_free, pool)]
            if pool.size == 0:
                hint = "a host's `gpus: N` declares accelerators that NVML does not see"
    if problems:
        raise SpecError(spec.source, sorted(problems, key=lambda p: (p.line, p.column)), hint=hint)
    if isinstance(allotments, list):
        raise busy(allotments, pool)
    return allotments


def _too_few_hosts(spec: Spec, units: list[Unit]) -> list[SpecProblem]:
    names = ", ".join(h.name for h in spec.hosts[:8])
    short = {
        f"{u.where}.hosts": f"wants {u.hosts} hosts, but the spec has {len(spec.hosts)}: {names}"
        for u in units
        if isinstance(u.hosts, int) and u.hosts > len(spec.hosts)
    }
    if any(u.kind == "driver" for u in units) and not any(h.local for h in spec.hosts):
        short["driver"] = f"runs on the launching machine, but no host is local; add 'local' to hosts: {names}"
    return [spec.problem(where, message) for where, message in short.items()]


def _cpu_hosts(spec: Spec, unit: Unit) -> tuple[str, ...]:
    """Every host has room for any number of ranks without GPUs, so the first ones will do."""
    if unit.kind == "driver":
        return (next(h.name for h in spec.hosts if h.local),)
    if isinstance(unit.hosts, tuple):
        return unit.hosts
    return tuple(h.name for h in spec.hosts[: unit.hosts or 1])


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
    hosts = [h for h in spec.hosts if h.name in used or code_may_add] or list(spec.hosts[:1])
    one_machine = len({facts[h.name].machine for h in hosts}) == 1
    host_plans = {h.name: _host_plan(h, facts[h.name], python, one_machine) for h in hosts}
    crowd = Counter(facts[name].machine for u in units for name in _rank_hosts(u, allotments[u.mesh]))
    meshes = []
    for unit in units:
        allotment = allotments[unit.mesh]
        env = {
            name: host_environment(
                spec.env,
                host_plans[name].env or {},
                unit.env,
                host=name,
                cores=facts[name].cores,
                ranks=crowd[facts[name].machine],
                inherited=inherited,
                secrets=spec.secrets,
            )
            for name in allotment.hosts
        }
        meshes.append(_mesh_plan(unit, allotment, env, host_plans, str(spec.workdir), spec.secrets))
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
    )


def _host_plan(host: Host, facts: HostFacts, python: str, one_machine: bool) -> HostPlan:
    python = host.python or (python if host.local else "python3")
    address = "127.0.0.1" if one_machine else host.address or ""  # "": learned when the host is reached
    return HostPlan(host.name, host.local, python, address, host.ssh, dict(host.env) or None, host.gpus, facts.cores)


def _mesh_plan(
    unit: Unit,
    allotment: Allotment,
    env: dict[str, dict[str, str]],
    host_plans: Mapping[str, HostPlan],
    workdir: str,
    secrets: tuple[str, ...],
) -> MeshPlan:
    return MeshPlan(
        mesh=unit.mesh,
        kind=unit.kind,
        program=unit.program,
        workdir=workdir,
        hosts=allotment.hosts,
        ranks=tuple(_ranks(unit, allotment)),
        env=env,
        gpus=allotment.gpus,
        python={name: unit.python or host_plans[name].python for name in allotment.hosts},
        preload=unit.preload,
        start_method=unit.start_method,
        restart=unit.restart,
        secrets=secrets,
    )


def place_more(plan: Plan, unit: Unit, gpus: Mapping[str, tuple[Gpu, ...]], inherited: Mapping[str, str]) -> MeshPlan:
    """One more mesh for a run: on the first hosts with room, or those it names.

    `gpus` are those of each host that this run has not given out. Raises UsageError for what can never be, BusyError
    for GPUs that others hold.
    """
    _check_hosts(plan, unit)
    hosts = {h.name: h for h in plan.hosts}
    if unit.with_gpus:
        pool = Pool({name: tuple(gpus.get(name, ())) for name in hosts})
        request = Request(unit.mesh, unit.where, unit.procs, unit.hosts)
        allotments = allot([request], pool.free())
        if isinstance(allotments, list):
            never = allot([request], pool)
            if isinstance(never, list):
                raise UsageError("; ".join(f"{where}: {what}" for where, what in never_fits(never, pool)))
            raise busy(allotments, pool)
        allotment = allotments[unit.mesh]
    else:
        names = unit.hosts if isinstance(unit.hosts, tuple) else tuple(hosts)[: unit.hosts or 1]
        allotment = Allotment(names, dict.fromkeys(names, ()))
    each = unit.procs // len(allotment.hosts)
    env = {
        name: host_environment(
            plan.env, hosts[name].env or {}, unit.env, host=name, cores=hosts[name].cores, ranks=each,
            inherited=inherited, secrets=plan.secrets,
        )
        for name in allotment.hosts
    }  # fmt: skip
    return _mesh_plan(unit, allotment, env, hosts, plan.workdir, plan.secrets)


def _check_hosts(plan: Plan, unit: Unit) -> None:
    there = [h.name for h in plan.hosts]
    wanted = unit.hosts
    if isinstance(wanted, tuple) and (unknown := [n for n in wanted if n not in there]):
        raise UsageError(f"mesh {unit.mesh}: no host {', '.join(unknown)} in this run; it has {', '.join(there)}")
    count = len(wanted) if isinstance(wanted, tuple) else wanted or 1
    if count > len(there):
        raise UsageError(f"mesh {unit.mesh} wants {count} hosts, but the run has {len(there)}: {', '.join(there[:8])}")
    if unit.procs % count:
        raise UsageError(f"mesh {unit.mesh}: {unit.procs} processes cannot be spread evenly over {count} hosts")


def _rank_hosts(unit: Unit, allotment: Allotment) -> list[str]:
    """The host of each rank. Host by host, as torchrun numbers them: a host's index is its group rank."""
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
        yield RankPlan(rank, local_rank, host, tuple(g.visible for g in gpus[local_rank:][:1]), env)
