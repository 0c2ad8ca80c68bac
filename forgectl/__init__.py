"""forgectl: launch, watch and shut down process groups for PyTorch. Importing it imports neither torch nor zmq."""

from __future__ import annotations

from forgectl.version import __version__

TYPE_CHECKING = False  # not from typing, which every command would then have to import
if TYPE_CHECKING:
    from forgectl.actor.driver.declared import get as get
    from forgectl.actor.driver.run_client import shutdown as shutdown
    from forgectl.actor.endpoint import endpoint as endpoint
    from forgectl.actor.endpoint import service_endpoint as service_endpoint
    from forgectl.actor.forge_actor import ForgeActor as ForgeActor
    from forgectl.actor.handle import ActorHandle as ActorHandle
    from forgectl.actor.options import Settings as Settings
    from forgectl.actor.service.routing import Router as Router
    from forgectl.actor.service.session import Session as Session
    from forgectl.actor.service_handle import ServiceHandle as ServiceHandle
    from forgectl.actor.shared_folder import shared_folder as shared_folder
    from forgectl.actor.stream import Stream as Stream
    from forgectl.actor.value_mesh import Point as Point
    from forgectl.actor.value_mesh import ValueMesh as ValueMesh
    from forgectl.actor.value_mesh import current_rank as current_rank
    from forgectl.actor.value_mesh import current_size as current_size
    from forgectl.errors import ActorDied as ActorDied
    from forgectl.errors import BusyError as BusyError
    from forgectl.errors import ForgeError as ForgeError
    from forgectl.errors import InternalError as InternalError
    from forgectl.errors import MeshStopped as MeshStopped
    from forgectl.errors import NotFoundError as NotFoundError
    from forgectl.errors import NotInstalledError as NotInstalledError
    from forgectl.errors import NotOursError as NotOursError
    from forgectl.errors import ServiceOverloaded as ServiceOverloaded
    from forgectl.errors import ServiceStopped as ServiceStopped
    from forgectl.errors import ServiceUnavailable as ServiceUnavailable
    from forgectl.errors import SpecError as SpecError
    from forgectl.errors import SshRefusedError as SshRefusedError
    from forgectl.errors import TimedOutError as TimedOutError
    from forgectl.errors import UnreachableError as UnreachableError
    from forgectl.errors import UsageError as UsageError
    from forgectl.errors import VersionError as VersionError
    from forgectl.rank.progress import heartbeat as heartbeat
    from forgectl.system.futures import Future as Future


_PUBLIC = {
    **dict.fromkeys(
        (
            "ActorDied",
            "BusyError",
            "ForgeError",
            "InternalError",
            "MeshStopped",
            "NotFoundError",
            "NotInstalledError",
            "NotOursError",
            "ServiceOverloaded",
            "ServiceStopped",
            "ServiceUnavailable",
            "SpecError",
            "SshRefusedError",
            "TimedOutError",
            "UnreachableError",
            "UsageError",
            "VersionError",
        ),
        "errors",
    ),
    "ActorHandle": "actor.handle",
    "ForgeActor": "actor.forge_actor",
    "Future": "system.futures",
    "Point": "actor.value_mesh",
    "Router": "actor.service.routing",
    "ServiceHandle": "actor.service_handle",
    "Session": "actor.service.session",
    "Settings": "actor.options",
    "Stream": "actor.stream",
    "ValueMesh": "actor.value_mesh",
    "current_rank": "actor.value_mesh",
    "current_size": "actor.value_mesh",
    "endpoint": "actor.endpoint",
    "get": "actor.driver.declared",
    "heartbeat": "rank.progress",
    "service_endpoint": "actor.endpoint",
    "shared_folder": "actor.shared_folder",
    "shutdown": "actor.driver.run_client",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  # the keys are strings


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # a checker knows the names from above, and finds those that are misspelt

    def __getattr__(name: str) -> object:
        """Import a name of the public API on first use."""
        import importlib

        if name not in _PUBLIC:
            raise AttributeError(f"module 'forgectl' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"forgectl.{_PUBLIC[name]}"), name)
        return value
