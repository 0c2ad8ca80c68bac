"""What whoever has a handle of an actors' mesh is told of it, by way of the agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from forgectl.controller.state import HostState, MeshState
from forgectl.controller.status_document import failure_of, reason
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
    failure = None
    if fallen is not None:
        failure = dataclasses.replace(failure_of(fallen), traceback=None)  # callers are shown the log's last lines
    return MeshNews(mesh.name, mesh.generation, mesh.state, places, reason(mesh), failure)
