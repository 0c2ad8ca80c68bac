"""What the agent of a host is told when it starts."""

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
    seat: AgentPlace,
    secrets: Mapping[str, str],
    *,
    first: bool,
    membership: Membership | None = None,
    coming: Sequence[MeshPlan] = (),
) -> AgentConfig:
    """For the `first` agent of a run on that host, or one that takes the place of another.

    It gets the secrets of those meshes alone that run there, unless the plan may grow. `coming`: meshes that are not
    in the plan yet.
    """
    here = [m for m in (*plan.meshes, *coming) if host.name in m.hosts]
    needed = set(plan.secrets) if plan.may_grow else {name for m in here for name in m.secrets}
    return AgentConfig(
        version=__version__,
        run=run.run,
        host=host.name,
        socket=str(seat.socket),
        run_dir=str(seat.run_dir),
        lease=plan.lease,
        log_limit=plan.log_limit,
        secrets={k: v for k, v in secrets.items() if k in needed},
        sweep=not first,
        ahead=_ahead(run, host, secrets, here) if first else (),
        place=host.place,
        messages=str(run.messages) if host.local else "",
        membership=membership,
        leaves=not host.local,
    )


def _ahead(
    run: RunDir, host: HostPlan, secrets: Mapping[str, str], meshes: Sequence[MeshPlan]
) -> tuple[ForkServerPlan, ...]:
    """The fork servers of these meshes, each once; what is wrong with one is said when it is wanted."""
    found: dict[ForkServerPlan, None] = {}
    for mesh in meshes:
        with contextlib.suppress(KeyError):
            found[share_of(mesh, host).fork_server(run.run, secrets)] = None
    return tuple(found)
