"""What agents learn of a mesh's state: news for all processes that have a handle of it, and why it is to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from forgectl.controller.causes import failure_of, failure_of_mesh, reason
from forgectl.controller.state import HostState, MeshState, RankState
from forgectl.model.status import FailureStatus
from forgectl.protocol.supervision import MeshNews, Stop


def news(mesh: MeshState, hosts: Mapping[str, HostState]) -> MeshNews:
    """The news of a mesh: the same object until its state changes, since every record asks for it."""
    now = (mesh.generation, mesh.state)
    if mesh.news is None or mesh.news[0] != now:
        mesh.news = now, _news(mesh, hosts)
    return mesh.news[1]


def _news(mesh: MeshState, hosts: Mapping[str, HostState]) -> MeshNews:
    places = tuple(hosts[r.host].plan.place for r in mesh.plan.ranks)
    cause = mesh.root_cause() if mesh.failed and not mesh.cause else mesh.last_root_cause
    return MeshNews(mesh.name, mesh.generation, mesh.state, places, reason(mesh), _failure(cause) if cause else None)


def stop(mesh: MeshState) -> Stop:
    """The command that ends a generation, with the reason for its ranks."""
    asked = mesh.stop or mesh.again
    by = asked.by if asked else None
    failure: FailureStatus | None = None
    if by is None and mesh.cause:
        failure = dataclasses.replace(failure_of_mesh(mesh), traceback=None)
    elif by is None and (cause := mesh.root_cause()):
        failure = _failure(cause)
    return Stop(mesh.name, mesh.generation, mesh.grace, by, failure)


def _failure(cause: RankState) -> FailureStatus:
    return dataclasses.replace(failure_of(cause), traceback=None)  # the log's last lines show more
