"""ForgeActor: a class whose instances are the ranks of a mesh. After TorchForge's class of the same name."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from forgectl.actor.endpoint import endpoint, info_of
from forgectl.actor.options import Settings, check_shape, settings_among
from forgectl.errors import NotInstalledError
from forgectl.model.plan import Program, Unit
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls

if TYPE_CHECKING:
    from typing_extensions import Self

    from forgectl.actor.handle import ActorHandle
    from forgectl.actor.service_handle import ServiceHandle

RESERVED = frozenset(
    {"as_actor", "as_service", "hosts", "launch", "logger", "mesh", "mesh_name", "metrics", "name", "num_replicas"}
    | {"options", "procs", "rank", "scale", "session", "shutdown", "size", "slice", "start_session"}
    | {"terminate_session", "with_gpus"}
)
"""The names that handles of actors and services need, or this class: no endpoint has one of them."""
SHAPE = ("procs", "hosts", "with_gpus", "num_replicas", "mesh_name")
T = TypeVar("T")
_UNSET: Any = object()

if missing := [p for m, p in (("zmq", "pyzmq"), ("cloudpickle", "cloudpickle")) if not importlib.util.find_spec(m)]:
    raise NotInstalledError(f"actors and services need {' and '.join(missing)}: pip install 'forgectl[actors]'")


class ForgeActor:
    """Subclass it, mark methods with `@endpoint`, and launch it: `await MyActor.options(procs=4).as_actor(…)`.

    Each process of the mesh has one instance, constructed with the arguments of `as_actor`. `setup` runs on every rank
    before `as_actor` returns. `torch.distributed.init_process_group()` works in each rank. What constructor and
    endpoints set in torch for their thread (grad mode, autocast, default device) holds in all later endpoints.

    `def __cleanup__(self, exc)`, `async` or not, runs on every rank when its mesh ends, within the grace period; then
    the process's atexit handlers run. `exc` is None if the driver's code shut the mesh down, ActorDied if another rank
    died, and else MeshStopped, whose `by` says "Ctrl-C", "forgectl shutdown", "the end of its script" and so on.
    Endpoints that run are cancelled before; a plain one goes on in its thread. A mesh that is killed at once (no
    grace, a lost host or a dead agent) runs no cleanup.

    Every setting of `options` may be given as a class attribute, too: `restart = 3`.
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
    _given: ClassVar[Mapping[str, Any]] = {}  # what `options` was called with
    _kind: ClassVar[Any] = "actor"

    mesh: ActorHandle
    """The mesh that this rank belongs to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accepts any arguments, so that subclasses can pass theirs to `super().__init__`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the names of endpoints, and the settings among the attributes; raises TypeError or ValueError."""
        super().__init_subclass__(**kwargs)
        _check_endpoints(cls)
        own = vars(cls)
        try:
            for name in own.keys() & set(SHAPE):
                check_shape(name, own[name])
            cls._settings()
        except (TypeError, ValueError) as e:
            raise type(e)(f"class {cls.__qualname__}: {e}") from None

    # ------------------------------------------------------------ in a rank

    @endpoint
    def setup(self) -> Any:
        """Override it, `async` or not: it runs on every rank once all are constructed, and is always an endpoint."""

    @functools.cached_property  # not a property: a constructor may assign it
    def rank(self) -> int:
        """This process's rank in its mesh, from 0."""
        return int(os.environ.get("RANK", "0"))

    @functools.cached_property
    def size(self) -> int:
        """Number of processes in its mesh."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @functools.cached_property
    def _rank(self) -> int:
        """As in TorchForge, whose users read it."""
        return int(os.environ.get("RANK", "0"))

    @functools.cached_property
    def _size(self) -> int:
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
        cls._settings().with_changes(kwargs, SHAPE)
        body["_given"] = kwargs
        body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        body["_forge_origin"] = _origin(cls)
        return type(cls.__name__, (cls,), body)

    # ------------------------------------------------------------ launch and shut down

    @classmethod
    def as_actor(cls, *args: Any, **kwargs: Any) -> Future[ActorHandle]:
        """Launch one mesh whose ranks are constructed with these arguments: its handle, once `setup` returned on each.

        Raises what a constructor or `setup` raised, with its remote traceback as the cause; BusyError if GPUs or the
        mesh's name are taken; ActorDied if a rank dies. After an error or a cancellation no process is left.
        """
        return Future.of(_awaited(cls.launch(*args, **kwargs)), loop_of_calls(), f"the launch of {cls._base_name()}")

    @classmethod
    def as_service(cls, *args: Any, **kwargs: Any) -> Future[ServiceHandle]:
        """Launch `num_replicas` meshes behind one handle. Raises what `as_actor` raises, and then leaves no mesh."""
        from forgectl.actor.service_handle import launch_service

        return Future.of(launch_service(cls, args, kwargs), loop_of_calls(), f"the launch of {cls._base_name()}")

    @classmethod
    async def launch(cls, *args: Any, **kwargs: Any) -> ActorHandle:
        """Called by `as_actor`, and by `as_service` for each replica. Override it to launch several meshes together."""
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
    def _settings(cls) -> Settings:
        """Its settings: class attributes, its own before those of its bases, and what `options` was called with."""
        given: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            given |= settings_among(vars(base)) | vars(base).get("_given", {})
        return Settings(**given)

    @classmethod
    def _unit(cls) -> Unit:
        settings, origin = cls._settings(), _origin(cls)
        _check_concrete(cls)
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


def _check_endpoints(cls: type) -> None:
    for name, member in vars(cls).items():
        if (name in RESERVED or name.startswith("__")) and info_of(name, member) is not None:
            needed = ", ".join(sorted(RESERVED))
            why = f"names with two underscores are Python's, and handles or ForgeActor need {needed}"
            raise TypeError(f"{cls.__qualname__}.{name} cannot be an endpoint of this name: {why}")


def _check_concrete(cls: type) -> None:
    members = ((name, inspect.getattr_static(cls, name)) for name in dir(cls))
    if abstract := [name for name, member in members if getattr(member, "__isabstractmethod__", False)]:
        raise TypeError(f"{cls.__qualname__} cannot be launched: it does not define {', '.join(abstract)}")


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
