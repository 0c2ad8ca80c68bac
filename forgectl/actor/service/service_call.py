"""One call of a service's endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.replica import ReplicaMesh, Work


@dataclass(frozen=True)
class ServiceCall:
    """`session`: the id of its session, if any. `began`: its arrival time, in seconds of the service's clock.

    `lent`: has another process make the call, in place of the service.
    """

    endpoint: str
    info: EndpointInfo
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    session: str | None
    began: float
    lent: Work | None = None

    async def run(self, mesh: ReplicaMesh) -> Any:
        """Make the call."""
        if self.lent is not None:
            return await self.lent(mesh)
        return await mesh.call(self.endpoint, self.args, self.kwargs)
