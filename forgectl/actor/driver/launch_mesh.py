"""Implements `as_actor`. A rank launches nothing, so it does not import this."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.actor.surroundings import Moment, Surroundings
from forgectl.errors import ForgeError, UsageError
from forgectl.model.plan import Unit

if TYPE_CHECKING:
    from forgectl.actor.driver.live_mesh import Making
    from forgectl.actor.handle import ActorHandle


def _import_the_rest() -> None:
    """Import the modules that are needed later, while the processes of the run start."""
    with contextlib.suppress(ImportError):  # the import that needs it will raise again
        import forgectl.actor.driver.call_server
        import forgectl.actor.driver.live_mesh
        import forgectl.actor.driver.rank_output  # noqa: F401


async def launch_mesh(cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    """Launch one mesh with the settings of `cls`, and construct `made(*args, **kwargs)` in each rank."""
    unit, now = cls._unit(), Moment.now()
    client = await asyncio.to_thread(run_client, unit, _import_the_rest)
    from forgectl.actor.driver.live_mesh import Making

    _check_run(cls._settings().share_gpus_with, unit, client)
    taken = _taken_along(client, unit, now)
    unit = dataclasses.replace(unit, env={**taken.at_import, **unit.env})
    making = Making(made, args, kwargs, unit.procs, taken, backoff=cls._kind == "service", logs=cls._settings().logs)
    launching = _launch(client, unit, making, named=cls.mesh_name is not None)
    return await client.in_loop(launching, f"the launch of {unit.mesh}")


def _taken_along(client: RunClient, unit: Unit, now: Moment) -> Surroundings:
    """What a mesh takes over from this process, besides the variables that `options` or its GPUs fix."""
    pinned = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER") if unit.with_gpus or unit.share_gpus_with else ()
    return Surroundings.between(client.began, now, {*unit.env, *pinned})


def _check_run(owner: Any, unit: Unit, client: RunClient) -> None:
    """Raise UsageError if a mesh is to share the GPUs of a mesh of another run, which may end at any time."""
    if owner is None or isinstance(owner, str) or (run := owner._mesh.foreign().run) == client.run.run:
        return
    raise UsageError(
        f"mesh {unit.mesh} is to share the GPUs of {owner.mesh_name}, a mesh of run {run}; it is of {client.run.run}",
        hint="only meshes of one run share GPUs",
    )


async def _launch(client: RunClient, unit: Unit, making: Making, *, named: bool) -> ActorHandle:
    from forgectl.actor.driver.live_mesh import LiveMesh
    from forgectl.actor.handle import ActorHandle

    obtaining = asyncio.ensure_future(client.obtain(unit, named=named))
    mesh: LiveMesh | None = None
    try:
        mesh = LiveMesh.begun(client, await asyncio.shield(obtaining), making)
        await mesh.ranks()
    except BaseException:
        with contextlib.suppress(ForgeError):  # `obtain` failed: there is no mesh to shut down
            await (mesh or LiveMesh.begun(client, await obtaining, making)).shutdown(0.0)
        raise
    return ActorHandle(mesh)
