"""The settings of `options(…)`, checked at once: a wrong value raises where it is written, not where it is used."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from forgectl.actor.service.routing import Router, make_router
from forgectl.actor.service.service import ServiceConfig
from forgectl.model.plan import (
    BACKOFF,
    MAX_RANKS,
    RESTART_CAUSES,
    SERVICE_RESTART,
    HangAction,
    HangPolicy,
    RestartPolicy,
)
from forgectl.names import NAME, nearest

_RESTARTS = "give a number, or {'max': 3, 'within': SECONDS, 'backoff': SECONDS, 'on': [CAUSE, …]}"

_HANGS = "give {'after': SECONDS, 'start': SECONDS, 'do': 'report', 'restart' or 'nothing', 'logs': False}"


@dataclass(frozen=True)
class Settings:
    """The settings of a mesh or a service, apart from those that are class attributes of ForgeActor.

    env: environment variables of the ranks.
    restart: how many restarts, or {"max": N, "within": SECONDS, "backoff": SECONDS, "on": [CAUSE, …]}, or a
    RestartPolicy. None: no restart for an actor, and 3 in 10 minutes for each replica of a service. The first restart
    is at once, the second in a row waits `backoff` (1 s), each further one twice as long as the one before, up to a
    minute; 0: all at once. Causes: "crash", "hang", "host_lost", "oom"; by default all.
    time_limit: how many seconds a mesh may run, restarts included; then it has failed. None: for ever.
    hang: when a rank is taken for hung: {"after": SECONDS, "start": SECONDS, "do": "report", "restart" or "nothing",
    "logs": False}, each optional, or a HangPolicy. None: after 10 minutes without progress it is reported.
    start_method: "fork" or "spawn".
    preload: modules that the fork server imports once. None: torch, if it is installed.
    python: another interpreter for the ranks.
    share_gpus_with: the name or the handle of a mesh of this run, whose GPUs the ranks use in place of their own.
    logs: whether a script shows on its stderr what the ranks print; FORGECTL_LOGS=off in its environment: of no mesh.
    return_first_rank_result: `route` returns the value of rank 0; if False, a ValueMesh of all ranks.
    The others: see ServiceConfig.
    """

    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    restart: int | Mapping[str, Any] | RestartPolicy | None = None
    start_method: Literal["fork", "spawn"] = "fork"
    preload: Sequence[str] | None = None
    python: str | None = None
    share_gpus_with: Any = None
    time_limit: float | None = None
    hang: Mapping[str, Any] | HangPolicy | None = None
    logs: bool = True
    router: str | Router | type[Router] = "round_robin"
    health_poll_rate: float = 1.0
    max_concurrent_requests: int = 10
    max_queue: int | None = None
    unavailable_timeout: float = 60.0
    return_first_rank_result: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.env, Mapping) or not all(isinstance(v, str) for p in self.env.items() for v in p):
            raise TypeError(f"env is {self.env!r}; it must map names to strings")
        if self.start_method not in ("fork", "spawn"):
            raise ValueError(f"start_method is {self.start_method!r}; it must be 'fork' or 'spawn'")
        mesh_name_of(self.share_gpus_with)
        if self.time_limit is not None and not _is_seconds(self.time_limit, least=0.001):
            raise ValueError(f"time_limit is {self.time_limit!r}; give a positive number of seconds, or None")
        if not isinstance(self.logs, bool):
            raise TypeError(f"logs is {self.logs!r}; it must be True or False")
        if isinstance(self.preload, str):
            raise TypeError(f"preload is {self.preload!r}; it must be a list of modules")
        if self.preload is not None:
            object.__setattr__(self, "preload", tuple(self.preload))
        self.restart_policy(service=False)
        self.hang_policy()
        self.service_config(1)
        make_router(self.router)

    def restart_policy(self, *, service: bool) -> RestartPolicy:
        """The restart policy of the mesh; raises ValueError or TypeError for an invalid `restart`."""
        given = self.restart
        if given is None:
            return SERVICE_RESTART if service else RestartPolicy()
        if isinstance(given, RestartPolicy):
            policy = given
        else:
            parts: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"max": given}
            policy = RestartPolicy(
                parts.pop("max", 0),
                parts.pop("within", None),
                parts.pop("backoff", BACKOFF),
                parts.pop("on", RESTART_CAUSES),
            )
            if parts:
                raise ValueError(f"restart is {given!r}; {_RESTARTS}")
        if not isinstance(policy.max, int) or isinstance(policy.max, bool) or policy.max < 0:
            raise ValueError(f"restart is {given!r}; {_RESTARTS}")
        if policy.within is not None and not _is_seconds(policy.within, least=0.001):
            raise ValueError(f"restart within {policy.within!r}; give a positive number of seconds")
        if not _is_seconds(policy.backoff, least=0):
            raise ValueError(f"restart backoff {policy.backoff!r}; give a number of seconds, or 0 for no wait")
        causes: Any = policy.on
        if isinstance(causes, str) or not causes or not all(c in RESTART_CAUSES for c in causes):
            raise ValueError(f"restart on {causes!r}; give a list of some of {', '.join(RESTART_CAUSES)}")
        return dataclasses.replace(policy, on=tuple(c for c in RESTART_CAUSES if c in causes))

    def hang_policy(self) -> HangPolicy:
        """When a rank of the mesh hangs; raises ValueError or TypeError for an invalid `hang`."""
        given = self.hang
        if isinstance(given, Mapping):
            if unknown := given.keys() - {f.name for f in dataclasses.fields(HangPolicy)}:
                raise ValueError(f"hang is {given!r}; it has no {min(unknown)!r}: {_HANGS}")
            given = HangPolicy(**given)
        policy = HangPolicy() if given is None else given
        if not isinstance(policy, HangPolicy):
            raise TypeError(f"hang is {given!r}; {_HANGS}")
        times = [policy.after, *([] if policy.start is None else [policy.start])]
        valid = all(_is_seconds(seconds, least=0.001) for seconds in times) and isinstance(policy.logs, bool)
        if not valid or policy.do not in get_args(HangAction):
            raise ValueError(f"hang is {given!r}; {_HANGS}")
        return policy

    def service_config(self, num_replicas: int) -> ServiceConfig:
        """The settings that concern a service; raises ValueError for an invalid one."""
        return ServiceConfig(
            num_replicas=num_replicas,
            router=self.router,
            max_concurrent_requests=self.max_concurrent_requests,
            max_queue=self.max_queue,
            unavailable_timeout=self.unavailable_timeout,
            health_poll_rate=self.health_poll_rate,
        )

    def with_changes(self, changes: Mapping[str, Any], others: Iterable[str]) -> Settings:
        """A copy with changes. Raises TypeError for an unknown name and suggests the nearest, also from `others`."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = nearest(name, [*known, *others])
                guess = f"; did you mean {near!r}?" if near else f"; there are {', '.join([*others, *known])}"
                raise TypeError(f"options() has no setting {name!r}{guess}")
        return dataclasses.replace(self, **changes)


def _is_seconds(value: Any, *, least: float) -> bool:
    """Whether it is a number of seconds, `least` or more and a year at most, as in a spec."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= 366 * 86400


def signature_of_options(shape: Mapping[str, tuple[str, Any]]) -> inspect.Signature:
    """What `options(…)` takes, for `help` and editors: `shape`, name → type and default, and the fields of Settings."""
    fields = {
        f.name: (f.type, ... if f.default is dataclasses.MISSING else f.default) for f in dataclasses.fields(Settings)
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    given = [
        inspect.Parameter(name, keyword, annotation=kind, default=default)
        for name, (kind, default) in {**shape, **fields}.items()
    ]
    this = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature([this, *given], return_annotation="type[Self]")


def mesh_name_of(mesh: Any) -> str | None:
    """The name of a mesh that is given by its name or its handle; raises TypeError for anything else but None."""
    if mesh is None or (isinstance(mesh, str) and NAME.fullmatch(mesh)):
        return mesh
    from forgectl.actor.handle import ActorHandle  # late: who has a handle has imported it

    if not isinstance(mesh, ActorHandle):
        raise TypeError(f"share_gpus_with is {mesh!r}; it must be the name of a mesh, or the handle of an actor")
    return mesh.mesh_name


def settings_among(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a class that are settings. Methods, properties and endpoints of such a name are not."""
    known = {f.name for f in dataclasses.fields(Settings)}
    return {name: value for name, value in attributes.items() if name in known and not hasattr(type(value), "__get__")}


def check_shape(name: str, value: Any) -> Any:
    """Check and return a value for a class attribute of ForgeActor; raises TypeError or ValueError."""
    if name == "with_gpus":
        if not isinstance(value, bool):
            raise TypeError(f"with_gpus is {value!r}; it must be True (one GPU per process) or False")
        return value
    if name == "mesh_name":
        if value is not None and (not isinstance(value, str) or not NAME.fullmatch(value)):
            raise ValueError(f"mesh_name is {value!r}; letters, digits, '.', '_' and '-', 63 at most, a letter first")
        return value
    if name == "hosts" and not isinstance(value, int):
        return _check_host_names(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a whole number")
    if not 1 <= value <= MAX_RANKS:
        raise ValueError(f"{name} is {value}; it must be 1 to {MAX_RANKS}")
    return value


def _check_host_names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not value:
        raise TypeError(f"hosts is {value!r}; it must be a number, a list of host names, or None for as few as fit")
    if len(set(value)) != len(value):
        raise ValueError(f"hosts is {value!r}; a host is named twice")
    return tuple(value)
