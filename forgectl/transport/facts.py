"""What planning has to know of hosts, asked of the hosts themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from forgectl.agent.gpus import NoSuchGpu, discover
from forgectl.errors import SpecError, SpecProblem
from forgectl.plan.model import Gpu, HostFacts, HostPlan
from forgectl.processes import boot_id

if TYPE_CHECKING:
    from forgectl.spec.model import Host, Spec


def gather(spec: Spec, environ: Mapping[str, str]) -> dict[str, HostFacts]:
    """Facts of every host of the spec, by name; raises SpecError for GPUs that are not there."""
    facts: dict[str, HostFacts] = {}
    problems: list[SpecProblem] = []
    wanted = any(m.with_gpus for m in (*spec.scripts.values(), *spec.actors.values(), *spec.services.values()))
    for index, host in enumerate(spec.hosts):
        try:
            facts[host.name] = _local(host, environ, look_for_gpus=wanted)
        except NoSuchGpu as e:
            problems.append(spec.problem(f"hosts[{index}].gpus", str(e)))
    if problems:
        raise SpecError(spec.source, problems)
    return facts


def gpus_of(host: HostPlan, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs of a host of a run, with their holders of this moment."""
    return discover(host.gpus, host=host.name, environ=environ).gpus


def _local(host: Host, environ: Mapping[str, str], *, look_for_gpus: bool) -> HostFacts:
    found = discover(host.gpus if look_for_gpus else "none", host=host.name, environ=environ)
    cores = len(os.sched_getaffinity(0))
    return HostFacts(host.name, boot_id(), cores, found.gpus, found.declared)
