"""CLI and driver: calls that a service routes, its metrics, and the endpoints of all that was launched."""

from __future__ import annotations

from typing import Any

from forgectl.frozen import dataclass
from forgectl.model.status import ServiceStatus
from forgectl.wire.envelope import Hello, Refusal


@dataclass(frozen=True)
class CallEndpoint:
    """Call an endpoint of a service, which routes it to a replica; `timeout` in seconds."""

    target: str
    endpoint: str
    args: list[Any]
    kwargs: dict[str, Any]
    timeout: float | None = None


@dataclass(frozen=True)
class GetMetrics:
    """Ask for the metrics of all services."""


@dataclass(frozen=True)
class GetEndpoints:
    """Ask for the endpoints of all actors and services."""


@dataclass(frozen=True)
class Values:
    """The result, a list of one value; a value that JSON cannot hold is sent as its repr."""

    values: list[Any]


@dataclass(frozen=True)
class Metrics:
    """Service → its metrics."""

    services: dict[str, ServiceStatus]


@dataclass(frozen=True)
class Endpoints:
    """Mesh or service → its endpoints that `forgectl call` can call → their signatures."""

    targets: dict[str, dict[str, str]]


CLI_TO_DRIVER = (Hello, CallEndpoint, GetMetrics, GetEndpoints)


DRIVER_TO_CLI = (Hello, Refusal, Values, Metrics, Endpoints)
