"""Implements `as_actor` and `as_service` in the driver. A rank does not import this: see nested.py."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.model.plan import Unit

if TYPE_CHECKING:
    from forgectl.actor.handle import ActorHandle
    from forgectl.actor.service_handle import ServiceHandle


def _import_the_rest() -> None:
    """Import the modules that are needed later, while the processes of the run start."""
    with contextlib.suppress(ImportError):  # the import that needs it will raise again
        import forgectl.actor.driver.call_server
        import forgectl.actor.driver.desk  # noqa: F401


async def _client(coming: Unit) -> RunClient:
    """This process's run, which listens for requests of the actors that it will have."""
    client = await asyncio.to_thread(run_client, coming, _import_the_rest)
    from forgectl.actor.driver.desk import open_desk

    await client.in_loop(open_desk(client), "the run")
    return client


async def launch_mesh(cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    """Launch one mesh with the settings of `cls`, and construct `made(*args, **kwargs)` in each rank."""
    unit = cls._unit()
    client = await _client(unit)
    from forgectl.actor.driver.launching import launch
    from forgectl.actor.making import making_of

    launching = launch(client, unit, making_of(made, args, kwargs, unit), named=cls.mesh_name is not None)
    return await client.in_loop(launching, f"the launch of {unit.mesh}")


async def launch_service(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ServiceHandle:
    """Start `cls.num_replicas` replicas and the service that routes to them."""
    client = await _client(cls._unit())
    from forgectl.actor.driver.live_service import begin_service

    return await client.in_loop(begin_service(client, cls, args, kwargs), f"the launch of {cls._base_name()}")
