"""ForgeActor: a class whose instances are the ranks of a mesh. After TorchForge's class of the same name."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, TypeVar, overload

from forgectl.actor import monarch_names
from forgectl.actor.endpoint import endpoint, info_of
from forgectl.actor.options import Settings, check_shape, mesh_name_of, settings_among, signature_of_options
from forgectl.actor.origin import own_origin
from forgectl.actor.value_mesh import rank_and_size
from forgectl.errors import NotInstalledError
from forgectl.hosts.installation import install_command
from forgectl.model.plan import PRELOAD, Program, Unit
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls

if TYPE_CHECKING:
    from typing_extensions import Self

    from forgectl.actor.handle import ActorHandle
    from forgectl.actor.handle_types import InHandles, Unspecified
    from forgectl.actor.service.routing import Router
    from forgectl.actor.service_handle import ServiceHandle
    from forgectl.model.plan import HangPolicy, RestartPolicy
else:
    InHandles = object

RESERVED = frozenset(
    {"adopted", "as_actor", "as_service", "hosts", "launch", "logger", "mesh", "mesh_name", "metrics", "name"}
    | {"num_replicas", "options", "procs", "rank", "scale", "session", "shutdown", "size", "slice", "start_session"}
    | {"terminate_session", "with_gpus"}
)
"""The names that handles of actors and services need, or this class: no endpoint has one of them."""
SHAPE = {
    "procs": "int",
    "hosts": "int | list[str] | tuple[str, ...] | None",
    "with_gpus": "bool",
    "num_replicas": "int",
    "mesh_name": "str | None",
}
"""Name → type of each setting that is a class attribute."""
P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])

if missing := [p for m, p in (("zmq", "pyzmq"), ("cloudpickle", "cloudpickle")) if not importlib.util.find_spec(m)]:
    cure = install_command(sys.executable, "actors", missing)
    raise NotInstalledError(f"actors and services need {' and '.join(missing)}: {cure}")


class ForgeActor(InHandles):
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
    hosts: ClassVar[int | list[str] | tuple[str, ...] | None] = None
    """A number of hosts, or their names; each gets equally many processes. None: as few hosts as have room."""
    with_gpus: ClassVar[bool] = False
    """Whether each process gets one GPU."""
    num_replicas: ClassVar[int] = 1
    """Number of meshes of a service."""
    mesh_name: ClassVar[str | Any] = None
    """The name in `forgectl status`; None: the class's name in lower case. A handle has a name in any case."""
    _given: ClassVar[Mapping[str, Any]] = {}  # what `options` was called with
    _kind: ClassVar[Any] = "actor"

    mesh: Self
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

    if TYPE_CHECKING:
        setup: Any  # a method with or without `@endpoint`, which checkers take for two things
    else:

        @endpoint
        def setup(self) -> None:
            """Override it, `async` or not: it runs on every rank once all are constructed. It is an endpoint."""

    @functools.cached_property  # not a property: a constructor may assign it
    def rank(self) -> int:
        """This process's rank in its mesh, from 0."""
        return rank_and_size()[0]

    @functools.cached_property
    def size(self) -> int:
        """Number of processes in its mesh; of a handle: of ranks that it calls."""
        return rank_and_size()[1]

    @functools.cached_property
    def _rank(self) -> int:
        """As in TorchForge, whose users read it."""
        return rank_and_size()[0]

    @functools.cached_property
    def _size(self) -> int:
        return rank_and_size()[1]

    @functools.cached_property
    def logger(self) -> logging.Logger:
        """A logger whose lines name class, rank and size. It writes to stderr unless the root logger has handlers."""
        return _logger(_origin(type(self)).__qualname__, self.rank, self.size)

    # ------------------------------------------------------------ configure

    @overload
    @classmethod
    def options(
        cls: C,
        *,
        procs: int = 1,
        hosts: int | list[str] | tuple[str, ...] | None = None,
        with_gpus: bool = False,
        num_replicas: int = 1,
        mesh_name: str | None = None,
        env: Mapping[str, str] = ...,
        restart: int | Mapping[str, Any] | RestartPolicy | None = None,
        start_method: Literal["fork", "spawn"] = "fork",
        preload: Sequence[str] | None = None,
        python: str | None = None,
        share_gpus_with: Any = None,
        time_limit: float | None = None,
        hang: Mapping[str, Any] | HangPolicy | None = None,
        logs: bool = True,
        router: str | Router | type[Router] = "round_robin",
        health_poll_rate: float = 1.0,
        max_concurrent_requests: int = 10,
        max_queue: int | None = None,
        unavailable_timeout: float = 60.0,
        return_first_rank_result: bool = True,
    ) -> C: ...
    @overload
    @classmethod
    def options(cls: type[T], *, timeout: float | None) -> T: ...  # of a handle
    @classmethod
    def options(cls, **settings: Any) -> Any:
        """A subclass with these settings; settings that are not given stay as the class has them.

        procs, hosts, with_gpus, num_replicas and mesh_name are also class attributes. The others: see
        `forgectl.Settings`. Raises TypeError for an unknown setting or a value of the wrong type, ValueError for a
        value out of range.
        """
        body = {name: check_shape(name, settings.pop(name)) for name in SHAPE if name in settings}
        cls._settings().with_changes(settings, SHAPE)
        body["_given"] = settings
        body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        body["_forge_origin"] = _origin(cls)
        return type(cls.__name__, (cls,), body)

    # ------------------------------------------------------------ launch and shut down

    @overload
    @classmethod
    def as_actor(cls: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    @classmethod
    def as_actor(cls: Callable[[Unspecified], T], *args: Any, **kwargs: Any) -> Future[T]: ...
    @classmethod
    def as_actor(cls, *args: Any, **kwargs: Any) -> Any:
        """Launch one mesh whose ranks are constructed with these arguments: its handle, once `setup` returned on each.

        Raises what a constructor or `setup` raised, with its remote traceback as the cause; BusyError if GPUs or the
        mesh's name are taken; ActorDied if a rank dies. After an error or a cancellation no process is left.

        In an actor it has the driver of the run launch the mesh, which lives until the run ends or until `shutdown()`
        of the handle in any process. A constructor uses `as_actor(…).get()`.
        """
        return Future.of(_awaited(cls.launch(*args, **kwargs)), loop_of_calls(), f"the launch of {cls._base_name()}")

    @overload
    @classmethod
    def as_service(cls: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    @classmethod
    def as_service(cls: Callable[[Unspecified], T], *args: Any, **kwargs: Any) -> Future[T]: ...
    @classmethod
    def as_service(cls, *args: Any, **kwargs: Any) -> Any:
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

    @overload
    @classmethod
    def shutdown(cls, actor: ForgeActor | ActorHandle) -> Coroutine[Any, Any, None]: ...
    @overload
    @classmethod
    def shutdown(cls, grace: float = 10.0) -> Future[None]: ...  # of the handle of an actor
    @overload
    @classmethod
    def shutdown(cls, *, timeout: float) -> Future[None]: ...  # of the handle of a service
    @classmethod  # type: ignore[misc]  # it is not what handles have
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
        preload = PRELOAD if settings.preload is None else settings.preload
        if cls.with_gpus and settings.share_gpus_with is not None:
            raise ValueError("with_gpus and share_gpus_with exclude each other; keep one")
        return Unit(
            mesh=cls._base_name(),
            kind=cls._kind,
            program=Program("actor", f"{origin.__module__}:{origin.__qualname__}"),
            procs=procs,
            hosts=check_shape("hosts", cls.hosts),
            with_gpus=check_shape("with_gpus", cls.with_gpus),
            env=dict(settings.env),
            python=settings.python,
            preload=tuple(preload),
            start_method=settings.start_method,
            restart=settings.restart_policy(service=cls._kind == "service"),
            share_gpus_with=mesh_name_of(settings.share_gpus_with),
            time_limit=settings.time_limit,
            hang=settings.hang_policy(),
        )


vars(ForgeActor)["options"].__func__.__signature__ = signature_of_options(
    {n: (t, getattr(ForgeActor, n)) for n, t in SHAPE.items()}
)
monarch_names.adopt(ForgeActor)


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
