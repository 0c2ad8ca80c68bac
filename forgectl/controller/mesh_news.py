"""What whoever has a handle of an actors' mesh is told of it, by way of the agents."""

from __future__ import annotations

from collections.abc import Mapping

from forgectl.controller.state import HostState, MeshState, RankState, describe
from forgectl.controller.status_document import reason
from forgectl.protocol.supervision import MeshNews


def news(mesh: MeshState, hosts: Mapping[str, HostState]) -> MeshNews:
    """The news of a mesh: the same object until its state is another, for it is asked for at every record."""
    now = (mesh.generation, mesh.state)
    if mesh.news is None or mesh.news[0] != now:
        mesh.news = now, _news(mesh, hosts)
    return mesh.news[1]


def _news(mesh: MeshState, hosts: Mapping[str, HostState]) -> MeshNews:
    places = tuple(hosts[r.host].plan.place for r in mesh.plan.ranks)
    fallen = mesh.root_cause() if mesh.failed and not mesh.cannot_start else mesh.fallen
    failure = _failure(fallen) if fallen is not None else None
    return MeshNews(mesh.name, mesh.generation, mesh.state, places, reason(mesh), failure)


def _failure(rank: RankState) -> dict[str, object]:
    return {
        "message": describe(rank),
        "rank": rank.plan.rank,
        "host": rank.plan.host,
        "log_tail": list(rank.exit.log_tail) if rank.exit else [],
        "exit_code": rank.exit.exit_code if rank.exit else None,
        "signal": rank.exit.signal if rank.exit else None,
    }
