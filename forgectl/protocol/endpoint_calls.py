"""CLI and driver: calls that a service routes, and its metrics."""

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
class Values:
    """The result, a list of one value; a value that JSON cannot hold is sent as its repr."""

    values: list[Any]


@dataclass(frozen=True)
class Metrics:
    """Service → its metrics."""

    services: dict[str, ServiceStatus]


CLI_TO_DRIVER = (Hello, CallEndpoint, GetMetrics)


DRIVER_TO_CLI = (Hello, Refusal, Values, Metrics)
