"""forgectl: launch, watch and shut down process groups for PyTorch. Importing it imports neither torch nor zmq."""

from __future__ import annotations

from forgectl.version import __version__

TYPE_CHECKING = False  # not from typing, which every command would then have to import
if TYPE_CHECKING:
    from typing import Any

    from forgectl.actor.driver.declared import get as get
    from forgectl.actor.driver.run_client import shutdown as shutdown
    from forgectl.actor.endpoint import endpoint as endpoint
    from forgectl.actor.endpoint import service_endpoint as service_endpoint
    from forgectl.actor.forge_actor import ForgeActor as ForgeActor
    from forgectl.actor.value_mesh import ValueMesh as ValueMesh
    from forgectl.actor.value_mesh import current_rank as current_rank
    from forgectl.actor.value_mesh import current_size as current_size
    from forgectl.errors import ActorDied as ActorDied
    from forgectl.errors import ForgeError as ForgeError
    from forgectl.errors import MeshStopped as MeshStopped
    from forgectl.system.futures import Future as Future


_PUBLIC = {
    "ActorDied": "errors",
    "ForgeActor": "actor.forge_actor",
    "ForgeError": "errors",
    "Future": "system.futures",
    "MeshStopped": "errors",
    "ValueMesh": "actor.value_mesh",
    "current_rank": "actor.value_mesh",
    "current_size": "actor.value_mesh",
    "endpoint": "actor.endpoint",
    "get": "actor.driver.declared",
    "service_endpoint": "actor.endpoint",
    "shutdown": "actor.driver.run_client",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  # the keys are strings


def __getattr__(name: str) -> Any:
    """Import a name of the public API on first use."""
    import importlib

    if name not in _PUBLIC:
        raise AttributeError(f"module 'forgectl' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"forgectl.{_PUBLIC[name]}"), name)
    return value
