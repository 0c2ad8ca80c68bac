"""What `as_actor` does. A rank, which launches nothing, needs none of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.errors import ForgeError
from forgectl.model.plan import Unit

if TYPE_CHECKING:
    from forgectl.actor.driver.live_mesh import Making
    from forgectl.actor.handle import ActorHandle


def _import_the_rest() -> None:
    """What is needed once the run's processes are there, imported while they start."""
    with contextlib.suppress(ImportError):  # whoever needs it will be told
        import forgectl.actor.driver.call_server
        import forgectl.actor.driver.live_mesh  # noqa: F401


async def launch_mesh(cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    """Bring up one mesh as `cls` is configured, with `made(*args, **kwargs)` in each rank."""
    unit = cls._unit()
    home = await asyncio.to_thread(run_client, unit, _import_the_rest)
    from forgectl.actor.driver.live_mesh import Making

    making = Making(made, args, kwargs, unit.procs, backoff=cls._kind == "service")
    return await home.in_loop(_launch(home, unit, making, named=cls.mesh_name is not None))


async def _launch(home: RunClient, unit: Unit, making: Making, *, named: bool) -> ActorHandle:
    from forgectl.actor.driver.live_mesh import LiveMesh
    from forgectl.actor.handle import ActorHandle

    obtaining = asyncio.ensure_future(home.obtain(unit, named=named))
    mesh: LiveMesh | None = None
    try:
        mesh = LiveMesh.begun(home, await asyncio.shield(obtaining), making)
        await mesh.ranks()
    except BaseException:
        with contextlib.suppress(ForgeError):  # it was refused: nothing of it is there
            await (mesh or LiveMesh.begun(home, await obtaining, making)).shutdown(0.0)
        raise
    return ActorHandle(mesh)
