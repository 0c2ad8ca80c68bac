"""The news of a mesh of actors for all processes that have a handle of it; agents pass it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from forgectl.controller.state import HostState, MeshState
from forgectl.controller.status_document import failure_of, reason
from forgectl.protocol.supervision import MeshNews


def news(mesh: MeshState, hosts: Mapping[str, HostState]) -> MeshNews:
    """The news of a mesh: the same object until its state changes, since every record asks for it."""
    now = (mesh.generation, mesh.state)
    if mesh.news is None or mesh.news[0] != now:
        mesh.news = now, _news(mesh, hosts)
    return mesh.news[1]


def _news(mesh: MeshState, hosts: Mapping[str, HostState]) -> MeshNews:
    places = tuple(hosts[r.host].plan.place for r in mesh.plan.ranks)
    cause = mesh.root_cause() if mesh.failed and not mesh.cannot_start else mesh.last_root_cause
    failure = None
    if cause is not None:
        failure = dataclasses.replace(failure_of(cause), traceback=None)  # callers see the log's last lines instead
    return MeshNews(mesh.name, mesh.generation, mesh.state, places, reason(mesh), failure)
