"""What a rank constructs: a class with its arguments, as the process that launches it pickles them."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from forgectl.actor.endpoint import EndpointInfo, Interface, interface_of
from forgectl.actor.service.service import ServiceConfig
from forgectl.frozen import dataclass
from forgectl.messages import pickling
from forgectl.model.plan import Unit

Parts = tuple[list[str], list[Any]]
"""The import path of the launching process, and the pickle of (class, args, kwargs) as nested frames."""


@dataclass(frozen=True)
class Making:
    """How to construct the actors of each generation: what the driver needs of the class, and the parts of a rank."""

    interface: Interface
    procs: int
    parts: Callable[[], Parts]
    backoff: bool = False  # wait longer before each further restart

    def sent(self) -> SentMaking:
        """The same for another process."""
        return SentMaking(self.interface, self.procs, self.parts(), self.backoff)


@dataclass(frozen=True)
class SentMaking:
    """A `Making` on its way to the driver, which need not be able to import the class."""

    interface: Interface
    procs: int
    parts: Parts
    backoff: bool

    def received(self) -> Making:
        """The Making; its parts stay as they are now."""
        path, frames = self.parts
        first, *buffers = pickling.copied(frames)
        return Making(
            self.interface, self.procs, lambda: (path, [first, *map(pickle.PickleBuffer, buffers)]), self.backoff
        )


@dataclass(frozen=True)
class Blueprint:
    """A service that another process asks the driver to launch. `unit` and `making` are those of each replica."""

    name: str
    named: bool  # whether the user chose the name
    unit: Unit
    making: SentMaking
    config: ServiceConfig
    endpoints: dict[str, EndpointInfo]
    first_rank: bool


def making_of(made: type, args: tuple[Any, ...], kwargs: dict[str, Any], unit: Unit) -> Making:
    """The Making of a class that this process launches; its parts are pickled anew for each generation."""

    def parts() -> Parts:
        return _import_path(), pickling.nested((made, args, kwargs))

    return Making(interface_of(made), unit.procs, parts, backoff=unit.kind == "service")


def _import_path() -> list[str]:
    """This process's import path as absolute folders, so that ranks find the same modules."""
    return [os.path.abspath(p) for p in sys.path if p != ""] + [os.getcwd()] * ("" in sys.path)  # noqa: PTH100, PTH109
