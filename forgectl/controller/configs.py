"""The configuration that an agent gets when it starts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from forgectl.controller.run_dir import AgentPlace, RunDir
from forgectl.model.plan import ForkServerPlan, HostPlan, MeshPlan, Plan
from forgectl.plan.shares import share_of
from forgectl.protocol.supervision import AgentConfig, Membership
from forgectl.version import __version__


def agent_config(
    run: RunDir,
    plan: Plan,
    host: HostPlan,
    agent_place: AgentPlace,
    secrets: Mapping[str, str],
    *,
    first: bool,
    membership: Membership | None = None,
    coming: Sequence[MeshPlan] = (),
) -> AgentConfig:
    """The configuration of the `first` agent of a run on that host, or of one that replaces another.

    It has only the secrets of the meshes that run there, unless others may come: the plan may grow, or has spares.
    `coming`: meshes that are not in the plan yet.
    """
    here = [m for m in (*plan.meshes, *coming) if host.name in m.hosts]
    needed = set(plan.secrets) if plan.may_grow or plan.spares else {name for m in here for name in m.secrets}
    return AgentConfig(
        version=__version__,
        run=run.run,
        host=host.name,
        socket=str(agent_place.socket),
        run_dir=str(agent_place.run_dir),
        lease=plan.lease,
        log_limit=plan.log_limit,
        secrets={k: v for k, v in secrets.items() if k in needed},
        sweep=not first,
        ahead=_ahead(run, host, secrets, here) if first else (),
        place=host.place,
        messages=str(run.messages) if host.local else "",
        membership=membership,
        input=str(run.sockets / "input") if plan.lends_input and host.local else "",
        leaves=not host.local,
    )


def _ahead(
    run: RunDir, host: HostPlan, secrets: Mapping[str, str], meshes: Sequence[MeshPlan]
) -> tuple[ForkServerPlan, ...]:
    """The fork servers of these meshes, each once. One whose secret is missing is left out: a mesh reports it later."""
    found: dict[ForkServerPlan, None] = {}
    for mesh in meshes:
        with contextlib.suppress(KeyError):
            found[share_of(mesh, host).fork_server(run.run, secrets)] = None
    return tuple(found)
