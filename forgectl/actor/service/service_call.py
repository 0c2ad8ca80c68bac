"""One call of a service's endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forgectl.actor.endpoint import EndpointInfo


@dataclass(frozen=True)
class ServiceCall:
    """`session`: the id of its session, if any. `began`: its arrival time, in seconds of the service's clock."""

    endpoint: str
    info: EndpointInfo
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    session: str | None
    began: float
