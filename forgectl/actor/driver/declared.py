"""The driver of a run: brings up what the spec declares, before the user's script."""

from __future__ import annotations

import asyncio
import importlib
import signal
from typing import Any

from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.actor.forge_actor import ForgeActor
from forgectl.errors import NotFoundError, UsageError
from forgectl.model.plan import Declaration

_declared: dict[str, Any] = {}


def get(name: str) -> Any:
    """The handle of an actor or service that the spec declares, already up. In the driver; raises NotFoundError."""
    if name in _declared:
        return _declared[name]
    there = ", ".join(_declared) or "none: only the driver of a spec with actors or services has them"
    raise NotFoundError(f"the spec declares no actor or service {name!r}; there is {there}")


def bring_up() -> None:
    """Launch every actor and service that the spec declares, all at once; raises what the first failure raised."""
    home = run_client()
    asyncio.run(_bring_up(home))


async def _bring_up(home: RunClient) -> None:
    classes = [_class_of(d) for d in home.plan.declared]
    launches = [_launch(home, d, cls) for d, cls in zip(home.plan.declared, classes, strict=True)]
    for declaration, handle in zip(home.plan.declared, await asyncio.gather(*launches), strict=True):
        _declared[declaration.name] = handle


def _class_of(declaration: Declaration) -> Any:
    module, _, path = declaration.target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if not hasattr(found, part):
            raise NotFoundError(f"{declaration.kind}s.{declaration.name}.class: {module} has no {path}")
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, ForgeActor)):
        raise UsageError(f"{declaration.kind}s.{declaration.name}.class: {declaration.target} is no ForgeActor")
    return found


async def _launch(home: RunClient, declaration: Declaration, cls: Any) -> Any:
    plan = home.plan.mesh(declaration.meshes[0])
    configured = cls.options(mesh_name=declaration.name, procs=plan.procs, **declaration.settings)
    if declaration.kind == "actor":
        return await configured.as_actor(**declaration.args)
    return await configured.options(num_replicas=len(declaration.meshes)).as_service(**declaration.args)


def stay() -> None:
    """Serve until told to end."""
    while True:
        signal.pause()
