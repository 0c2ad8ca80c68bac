"""A service as its callers have it: in the driver's process, which routes, or in any other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from forgectl.actor.endpoint import Interface
from forgectl.actor.stream import Stream
from forgectl.frozen import dataclass
from forgectl.system.futures import Future


@dataclass(frozen=True)
class ServiceForm:
    """A service as its callers know it. `first_rank`: a route's value is that of rank 0, else of all ranks.

    batched: the endpoints whose calls the service gathers.
    """

    name: str
    interface: Interface
    batched: frozenset[str]
    first_rank: bool

    def label(self, what: str) -> str:
        """An endpoint, or another work of the service, in messages."""
        return f"{self.name}.{what}"


class CalledService(ABC):
    """What a handle needs of its service. Calls may come from any thread."""

    def __init__(self, form: ServiceForm) -> None:
        self.form = form
        self.adopted = False  # whether this process drives it, and has replicas of an earlier driver

    @abstractmethod
    def foreign(self) -> Any:
        """The service as other processes may have it."""

    @abstractmethod
    def route(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Future[Any]:
        """Call one replica."""

    @abstractmethod
    def fanout(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[list[Any]]:
        """Call each healthy replica."""

    @abstractmethod
    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Stream[Any]:
        """Begin a stream on one replica."""

    @abstractmethod
    async def start_session(self) -> str:
        """Start a session and return its id."""

    @abstractmethod
    async def terminate_session(self, session: str) -> None:
        """End a session; raises NotFoundError if it is unknown."""

    @abstractmethod
    async def scale(self, replicas: int) -> None:
        """Change the number of replicas."""

    @abstractmethod
    def metrics(self) -> dict[str, Any]:
        """The numbers of the service and of each replica."""

    @abstractmethod
    def shutdown(self, timeout: float) -> Future[None]:
        """End the service."""
