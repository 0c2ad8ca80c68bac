"""Where the ranks of a mesh are started: by this process on its own machine, by Monarch's workers on other hosts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgectl import __version__
from forgectl.controller.rundir import RunDir
from forgectl.errors import UnreachableError
from forgectl.frozen import dataclass
from forgectl.names import DRIVER
from forgectl.plan.model import HostPlan, Plan

if TYPE_CHECKING:
    from forgectl.actor.engine import HostWorker

FORWARDER = str(Path(__file__).resolve().parent.parent / "rank" / "forward.py")


@dataclass(frozen=True)
class Start:
    """How one rank is started: a forwarder's arguments, and the worker that runs it (None: this process)."""

    arguments: list[str]
    worker: HostWorker | None


def starts(run: RunDir, plan: Plan, hosts: Mapping[str, dict[str, Any]], mesh: dict[str, Any]) -> list[Start]:
    """How each rank of a mesh is started, in order; `hosts` and `mesh` as the controller reports them.

    Raises UnreachableError for a host whose worker is not there.
    """
    index = {h.name: i for i, h in enumerate(plan.hosts)}
    found = []
    for rank in mesh["ranks"]:
        number = index[rank["host"]]
        host = plan.hosts[number]
        forwarder, worker = FORWARDER, None
        if not host.local:
            worker = worker_of(host, hosts)
            forwarder = hosts[host.name]["worker"]["forwarder"]
        what = [__version__, run.run, mesh["mesh"], str(mesh["generation"]), str(rank["rank"])]
        found.append(Start(["-S", "-I", forwarder, str(run.seat(number, host).socket), *what], worker))
    return found


def worker_of(host: HostPlan, hosts: Mapping[str, dict[str, Any]]) -> HostWorker:
    """Monarch's worker on an ssh host; raises UnreachableError where there is none now."""
    from forgectl.actor.engine import HostWorker

    worker = hosts.get(host.name, {}).get("worker")
    if not worker:
        raise UnreachableError(f"host {host.name} has no worker for actors just now")
    address = f"[{host.address}]" if ":" in host.address else host.address
    return HostWorker(f"tls://{address}:{worker['port']}", worker["python"])


def own_host(plan: Plan) -> HostPlan | None:
    """The host that this process, the run's driver, is on."""
    name = os.environ.get("FORGE_HOST")
    for mesh in plan.meshes:
        if mesh.mesh == DRIVER:
            name = mesh.hosts[0]
    return next((h for h in plan.hosts if h.name == name), None)


def is_far(plan: Plan) -> bool:
    """Whether the run has hosts that ssh reaches."""
    return any(not host.local for host in plan.hosts)


def gateways(plan: Plan) -> list[HostPlan]:
    """The ssh hosts that the spec's actors are on, any of which this process may take part through."""
    names = {name for mesh in plan.meshes if mesh.stays for name in mesh.hosts}
    return [h for h in plan.hosts if h.name in names and not h.local]
