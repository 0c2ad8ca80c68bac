"""What a rank constructs: a class with its arguments, as the process that launches it pickles them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from forgectl.actor.endpoint import EndpointInfo, Interface, interface_of
from forgectl.actor.service.service import ServiceConfig
from forgectl.actor.surroundings import Surroundings
from forgectl.errors import UsageError
from forgectl.frozen import dataclass
from forgectl.messages import pickling
from forgectl.model.plan import Unit

Payload = list[Any]
"""The pickle of (class, args, kwargs) as nested frames."""


class Launch(NamedTuple):
    """What tells a launch from others. `named`: its name was chosen. `claim` and `terms` are those of AddMesh.

    `is_over`: an earlier driver has launched it, so nothing new is launched.
    """

    named: bool
    claim: str
    terms: dict[str, str] | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Making:
    """How to construct the actors of each generation: what the driver needs of the class, and the payload of a rank."""

    interface: Interface
    procs: int
    surroundings: Surroundings
    payload: Callable[[], Payload]
    logs: bool = True  # show on the driver's stderr what the ranks print

    def sent(self) -> SentMaking:
        """The same for another process."""
        return SentMaking(self.interface, self.procs, self.surroundings, self.payload(), self.logs)


@dataclass(frozen=True)
class SentMaking:
    """A `Making` on its way to the driver, which need not be able to import the class."""

    interface: Interface
    procs: int
    surroundings: Surroundings
    payload: Payload
    logs: bool

    def received(self) -> Making:
        """The Making; its payload stays as it is now."""
        kept = pickling.copied(self.payload)
        payload = functools.partial(pickling.as_part, kept)
        return Making(self.interface, self.procs, self.surroundings, payload, self.logs)


@dataclass(frozen=True)
class Blueprint:
    """A service that another process asks the driver to launch. `unit` and `making` are those of each replica."""

    name: str
    unit: Unit
    making: SentMaking
    config: ServiceConfig
    endpoints: dict[str, EndpointInfo]
    first_rank: bool


def making_of(
    cls: Any, made: type, args: tuple[Any, ...], kwargs: dict[str, Any], unit: Unit, surroundings: Surroundings
) -> Making:
    """The Making of a class that this process launches with the settings of `cls`.

    Its payload is pickled anew for each generation.
    """

    def payload() -> Payload:
        return pickling.nested((made, args, kwargs))

    logs: bool = cls._settings().logs
    return Making(interface_of(made), unit.procs, surroundings, payload, logs=logs)


def check_owner(owner: Any, unit: Unit, run: str) -> None:
    """Raise UsageError if a mesh is to share the GPUs of a mesh of another run, which may end at any time."""
    if owner is None or isinstance(owner, str) or (other := owner._mesh.foreign().origin.run) == run:
        return
    raise UsageError(
        f"mesh {unit.mesh} is to share the GPUs of {owner.mesh_name}, a mesh of run {other}; it is of {run}",
        hint="only meshes of one run share GPUs",
    )
