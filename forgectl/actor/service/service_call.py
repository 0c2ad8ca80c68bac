"""One call of a service's endpoint, as it comes from a caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forgectl.actor.endpoint import EndpointInfo


@dataclass(frozen=True)
class ServiceCall:
    """`session`: the id of the session that it belongs to. `began`: when it came, in seconds of the service's clock."""

    endpoint: str
    info: EndpointInfo
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    session: str | None
    began: float
