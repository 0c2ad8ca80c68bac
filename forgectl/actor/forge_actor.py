"""ForgeActor: a class whose instances are the ranks of a mesh. After TorchForge's class of the same name."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from forgectl.actor.options import Settings, check_shape
from forgectl.actor.origin import own_origin
from forgectl.errors import NotInstalledError
from forgectl.model.plan import Program, Unit
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls

if TYPE_CHECKING:
    from typing_extensions import Self

    from forgectl.actor.handle import ActorHandle
    from forgectl.actor.service_handle import ServiceHandle

SHAPE = ("procs", "hosts", "with_gpus", "num_replicas", "mesh_name")
T = TypeVar("T")
_UNSET: Any = object()

if missing := [p for m, p in (("zmq", "pyzmq"), ("cloudpickle", "cloudpickle")) if not importlib.util.find_spec(m)]:
    raise NotInstalledError(f"actors and services need {' and '.join(missing)}: pip install 'forgectl[actors]'")


class ForgeActor:
    """Subclass it, mark methods with `@endpoint`, and launch it: `await MyActor.options(procs=4).as_actor(…)`.

    Each process of the mesh has one instance, constructed with the arguments of `as_actor`. An endpoint named `setup`
    runs on every rank before `as_actor` returns. `torch.distributed.init_process_group()` works in each rank.
    """

    procs: ClassVar[int] = 1
    """Number of processes in the mesh."""
    hosts: ClassVar[int | tuple[str, ...] | None] = None
    """A number of hosts, or their names; each gets equally many processes. None: as few hosts as have room."""
    with_gpus: ClassVar[bool] = False
    """Whether each process gets one GPU."""
    num_replicas: ClassVar[int] = 1
    """Number of meshes of a service."""
    mesh_name: ClassVar[str | None] = None
    """The name in `forgectl status`; None: the class's name in lower case."""
    _settings: ClassVar[Settings] = Settings()
    _kind: ClassVar[Any] = "actor"

    mesh: ActorHandle
    """The mesh that this rank belongs to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accepts any arguments, so that subclasses can pass theirs to `super().__init__`."""

    # ------------------------------------------------------------ in a rank

    @property
    def rank(self) -> int:
        """This process's rank in its mesh, from 0."""
        return int(os.environ.get("RANK", "0"))

    @property
    def size(self) -> int:
        """Number of processes in its mesh."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @functools.cached_property
    def logger(self) -> logging.Logger:
        """A logger whose lines name class, rank and size. It writes to stderr unless the root logger has handlers."""
        return _logger(_origin(type(self)).__qualname__, self.rank, self.size)

    # ------------------------------------------------------------ configure

    @classmethod
    def options(
        cls,
        *,
        procs: int = _UNSET,
        hosts: Any = _UNSET,
        with_gpus: bool = _UNSET,
        num_replicas: int = _UNSET,
        mesh_name: str | None = _UNSET,
        **kwargs: Any,
    ) -> type[Self]:
        """A subclass with these settings; settings that are not given stay unchanged. `kwargs`: see `Settings`.

        Raises TypeError for an unknown setting or a value of the wrong type, ValueError for a value out of range.
        """
        given = zip(SHAPE, (procs, hosts, with_gpus, num_replicas, mesh_name), strict=True)
        body = {name: check_shape(name, value) for name, value in given if value is not _UNSET}
        body["_settings"] = cls._settings.with_changes(kwargs, SHAPE)
        body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        body["_forge_origin"] = _origin(cls)
        return type(cls.__name__, (cls,), body)

    # ------------------------------------------------------------ launch and shut down

    @classmethod
    def as_actor(cls, *args: Any, **kwargs: Any) -> Future[ActorHandle]:
        """Launch one mesh whose ranks are constructed with these arguments: its handle, once `setup` returned on each.

        Raises what a constructor or `setup` raised, with its remote traceback as the cause; BusyError if GPUs or the
        mesh's name are taken; ActorDied if a rank dies. After an error or a cancellation no process is left.

        In an actor it has the driver of the run launch the mesh, which lives until the run ends or until `shutdown()`
        of the handle in any process. A constructor uses `as_actor(…).get()`.
        """
        return Future.of(_awaited(cls.launch(*args, **kwargs)), loop_of_calls(), f"the launch of {cls._base_name()}")

    @classmethod
    def as_service(cls, *args: Any, **kwargs: Any) -> Future[ServiceHandle]:
        """Launch `num_replicas` meshes behind one handle. Raises what `as_actor` raises, and then leaves no mesh."""
        launching: Coroutine[Any, Any, ServiceHandle]
        if (origin := own_origin()) is not None:
            from forgectl.actor import nested

            launching = nested.launch_service(origin, cls, _origin(cls), args, kwargs)
        else:
            from forgectl.actor.driver.launch_mesh import launch_service

            launching = launch_service(cls, args, kwargs)
        return Future.of(launching, loop_of_calls(), f"the launch of {cls._base_name()}")

    @classmethod
    async def launch(cls, *args: Any, **kwargs: Any) -> ActorHandle:
        """Called by `as_actor`, and by `as_service` for each replica. Override it to launch several meshes together."""
        if (origin := own_origin()) is not None:
            from forgectl.actor import nested

            return await nested.launch_mesh(origin, cls, _origin(cls), args, kwargs)
        from forgectl.actor.driver.launch_mesh import launch_mesh

        return await launch_mesh(cls, _origin(cls), args, kwargs)

    @classmethod
    async def shutdown(cls, actor: Any) -> None:
        """End what `launch` returned. Override it together with `launch`. A second call does nothing."""
        await actor.shutdown()

    @classmethod
    def _base_name(cls) -> str:
        """The name of its mesh or service; if it was not chosen and is taken, the launch picks another one."""
        return cls.mesh_name or _origin(cls).__name__.lower().strip("_") or "actor"

    @classmethod
    def _unit(cls) -> Unit:
        settings, origin = cls._settings, _origin(cls)
        procs = check_shape("procs", cls.procs)
        preload = settings.preload
        if preload is None:
            preload = ("torch",) if importlib.util.find_spec("torch") else ()
        return Unit(
            mesh=cls._base_name(),
            kind=cls._kind,
            program=Program("actor", f"{origin.__module__}:{origin.__qualname__}"),
            procs=procs,
            hosts=check_shape("hosts", cls.hosts),
            with_gpus=check_shape("with_gpus", cls.with_gpus),
            env=dict(settings.env),
            python=settings.python,
            preload=preload,
            start_method=settings.start_method,  # type: ignore[arg-type]
            restart=settings.restart_policy(service=cls._kind == "service"),
        )


async def _awaited(launching: Awaitable[T]) -> T:
    return await launching


def _origin(cls: type) -> type:
    """The class that the user wrote, from a class that `options` made."""
    return cls.__dict__.get("_forge_origin", cls)  # type: ignore[no-any-return]


def _logger(name: str, rank: int, size: int) -> logging.Logger:
    logger = logging.getLogger(f"forgectl.actor.{name}")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(levelname)s [{name} {rank}/{size}] %(message)s"))
        handler.addFilter(lambda record: not logging.getLogger().handlers)  # the root handlers show it
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return logger
