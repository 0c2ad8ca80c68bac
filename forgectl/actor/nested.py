"""Implements `as_actor` and `as_service` in a rank: it asks the driver of its run, which launches them."""

from __future__ import annotations

from typing import Any

from forgectl.actor.endpoint import endpoints_of
from forgectl.actor.errands import driver
from forgectl.actor.handle import ActorHandle
from forgectl.actor.making import Blueprint, Making, check_owner, making_of
from forgectl.actor.origin import Origin
from forgectl.actor.service_handle import ServiceHandle
from forgectl.actor.surroundings import Moment, Surroundings
from forgectl.actor.verbs import LAUNCH, SERVE
from forgectl.errors import UsageError
from forgectl.model.plan import Unit


async def launch_mesh(
    origin: Origin, cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ActorHandle:
    """Launch one mesh with the settings of `cls`, and construct `made(*args, **kwargs)` in each rank."""
    unit = cls._unit()
    making = _making(origin, cls, made, args, kwargs, unit).sent()
    handle: ActorHandle = await driver(origin).launch(unit.mesh, cls.mesh_name is not None, LAUNCH, unit, making)
    return handle


async def launch_service(
    origin: Origin, cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ServiceHandle:
    """Launch `cls.num_replicas` replicas and the service that routes to them."""
    if (cls.launch.__qualname__, cls.shutdown.__qualname__) != ("ForgeActor.launch", "ForgeActor.shutdown"):
        raise UsageError(
            f"{made.__qualname__} overrides launch or shutdown, so its services are launched by the driver of a run",
            hint="call as_service in the driver, and pass the handle to this actor",
        )
    replica = cls.options()
    replica._kind = "service"
    unit, settings = replica._unit(), cls._settings()
    blueprint = Blueprint(
        cls._base_name(),
        unit,
        _making(origin, cls, made, args, kwargs, unit).sent(),
        settings.service_config(cls.num_replicas),
        endpoints_of(made),
        settings.return_first_rank_result,
    )
    named = cls.mesh_name is not None
    service: ServiceHandle = await driver(origin).launch(blueprint.name, named, SERVE, blueprint)
    return service


def _making(origin: Origin, cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any], unit: Unit) -> Making:
    """Of this rank's surroundings the new ranks get the import path alone: they may be on another host."""
    check_owner(cls._settings().share_gpus_with, unit, origin.run)
    return making_of(cls, made, args, kwargs, unit, Surroundings.between(None, Moment.now(), ()))
