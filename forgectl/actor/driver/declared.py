"""Launches what the spec declares, in the driver, before the user's script runs."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.actor.forge_actor import ForgeActor
from forgectl.errors import NotFoundError, UsageError
from forgectl.model.plan import Declaration

T = TypeVar("T")
READY_MADE = Path(__file__).parents[2].with_name("actors")

_declared: dict[str, tuple[type, Any]] = {}
"""Name → class and handle."""


@overload
def get(name: str) -> Any: ...
@overload
def get(name: str, cls: type[T]) -> T: ...
def get(name: str, cls: type | None = None) -> Any:
    """The handle of an actor or service that the spec declares; it is up already. Works only in the driver.

    `cls`, the class of the spec, is for editors and type checkers: the handle has its endpoints. Raises NotFoundError
    for a name that the spec does not declare, TypeError where its class is another one, and no subclass of it.
    """
    if name in _declared:
        made, handle = _declared[name]
        # By name: a class of the driver's own script is another object there, in the module __main__.
        if cls is not None and cls.__qualname__ not in {base.__qualname__ for base in made.__mro__}:
            raise TypeError(f"the spec declares {name!r} as {made.__qualname__}, which is not a {cls.__qualname__}")
        return handle
    there = ", ".join(_declared) or "none: only the driver of a spec with actors or services has them"
    raise NotFoundError(f"the spec declares no actor or service {name!r}; it declares {there}")


def bring_up() -> None:
    """Launch every actor and service that the spec declares, at the same time; raises the first error."""
    client = run_client()
    classes = [_class_of(d) for d in client.plan.declared]
    asyncio.run(_bring_up(client, classes))


async def _bring_up(client: RunClient, classes: Sequence[Any]) -> None:
    launches = [_launch(client, d, cls) for d, cls in zip(client.plan.declared, classes, strict=True)]
    for declaration, cls, handle in zip(client.plan.declared, classes, await asyncio.gather(*launches), strict=True):
        _declared[declaration.name] = cls, handle


def _class_of(declaration: Declaration) -> Any:
    module, _, path = declaration.target.partition(":")
    where = f"{declaration.kind}s.{declaration.name}.class"
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name != module or (hiding := _hides_ready_made(module)) is None:
            raise
        raise NotFoundError(f"{where}: there is no module {module}: {hiding}") from None
    for part in path.split("."):
        if not hasattr(found, part):
            hiding = _hides_ready_made(module)
            raise NotFoundError(f"{where}: {module} has no {path}" + (f": {hiding}" if hiding else ""))
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, ForgeActor)):
        raise UsageError(f"{declaration.kind}s.{declaration.name}.class: {declaration.target} is not a ForgeActor")
    return found


def _hides_ready_made(module: str) -> str | None:
    """What hides the package of ready-made actors that this module is looked for in, if something does."""
    found = sys.modules.get("actors")
    where = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if module.partition(".")[0] != "actors" or where is None or Path(where).parent == READY_MADE:
        return None
    return f"{where} hides forgectl's package actors; give that file another name"


async def _launch(client: RunClient, declaration: Declaration, cls: Any) -> Any:
    plan = client.plan.mesh(declaration.meshes[0])
    configured = cls.options(mesh_name=declaration.name, procs=plan.procs, **declaration.settings)
    if declaration.kind == "actor":
        return await configured.as_actor(**declaration.args)
    return await configured.options(num_replicas=len(declaration.meshes)).as_service(**declaration.args)


def stay() -> None:
    """Keep the process alive until a signal ends it."""
    while True:
        signal.pause()
