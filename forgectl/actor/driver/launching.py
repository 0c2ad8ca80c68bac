"""Launches one mesh of actors, in the loop of the run's client."""

from __future__ import annotations

import asyncio
import contextlib

from forgectl.actor.driver.live_mesh import LiveMesh
from forgectl.actor.driver.run_client import RunClient
from forgectl.actor.handle import ActorHandle
from forgectl.actor.making import Launch, Making
from forgectl.errors import ForgeError
from forgectl.model.plan import Unit


async def launch(
    client: RunClient, unit: Unit, making: Making, asked: Launch, *, may_be_declared: bool = True
) -> ActorHandle:
    """Launch or adopt a mesh; returns its handle once it is up.

    After an error or a cancellation nothing is left of a new one. `may_be_declared`: it may be the mesh of that name
    which the spec declares.
    """
    obtaining = asyncio.ensure_future(client.obtain(unit, asked, may_be_declared=may_be_declared))
    mesh: LiveMesh | None = None
    try:
        mesh = LiveMesh.begun(client, await asyncio.shield(obtaining), making)
        await mesh.ranks()
    except BaseException:
        with contextlib.suppress(ForgeError):  # `obtain` failed: there is no mesh to shut down
            mesh = mesh or LiveMesh.begun(client, await obtaining, making)
            if not mesh.adopted:
                await mesh.shutdown(0.0)
        raise
    return ActorHandle(mesh)
