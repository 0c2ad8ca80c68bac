"""Implements `as_actor` and `as_service` in the driver. A rank does not import this: see nested.py."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.actor.making import Launch, check_owner, making_of
from forgectl.actor.surroundings import Moment, Surroundings
from forgectl.model.plan import Unit

if TYPE_CHECKING:
    from forgectl.actor.handle import ActorHandle
    from forgectl.actor.service_handle import ServiceHandle


def _import_the_rest() -> None:
    """Import the modules that are needed later, while the processes of the run start."""
    with contextlib.suppress(ImportError):  # the import that needs it will raise again
        import forgectl.actor.driver.call_server
        import forgectl.actor.driver.desk
        import forgectl.actor.driver.rank_output  # noqa: F401


async def _client(coming: Unit) -> RunClient:
    """This process's run, which listens for requests of the actors that it will have."""
    client = await asyncio.to_thread(run_client, coming, _import_the_rest)
    from forgectl.actor.driver.desk import open_desk

    await client.in_loop(open_desk(client), "the run")
    return client


async def launch_mesh(cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    """Launch one mesh with the settings of `cls`, and construct `made(*args, **kwargs)` in each rank."""
    unit, now = cls._unit(), Moment.now()
    named, claim = _claim(cls)
    client = await _client(unit)
    from forgectl.actor.driver.launching import launch
    from forgectl.actor.terms import terms_of

    check_owner(cls._settings().share_gpus_with, unit, client.run.run)
    taken = _taken_along(client, unit, now)
    unit = dataclasses.replace(unit, env={**taken.at_import, **unit.env})
    making = making_of(cls, made, args, kwargs, unit, taken)
    asked = Launch(named, claim, terms_of(args, kwargs) if client.may_restart else None)
    launching = launch(client, unit, making, asked)
    return await client.in_loop(launching, f"the launch of {unit.mesh}")


def _taken_along(client: RunClient, unit: Unit, now: Moment) -> Surroundings:
    """What a mesh takes over from this process, besides the variables that `options` or its GPUs fix."""
    pinned = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER") if unit.with_gpus or unit.share_gpus_with else ()
    return Surroundings.between(client.began, now, {*unit.env, *pinned})


async def launch_service(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ServiceHandle:
    """Start `cls.num_replicas` replicas and the service that routes to them."""
    asked = Launch(*_claim(cls))
    client = await _client(cls._unit())
    from forgectl.actor.driver.live_service import begin_service

    return await client.in_loop(begin_service(client, cls, asked, args, kwargs), f"the launch of {cls._base_name()}")


_launches: Counter[str] = Counter()
"""Name → launches of that name which did not choose it."""


def _claim(cls: Any) -> tuple[bool, str]:
    """Whether the name of a launch was chosen, and its claim: else the place among the launches of its name.

    Call it before anything is awaited, so that the places are in the order of the launches.
    """
    name: str = cls._base_name()
    if cls.mesh_name is not None:
        return True, name
    _launches[name] += 1
    return False, f"{name}#{_launches[name]}"
