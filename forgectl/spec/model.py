"""The contents of a spec. A field's description gives its meaning; `forgectl schema` prints it, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from forgectl.errors import SpecProblem
from forgectl.model.event import HookName
from forgectl.model.plan import (
    BACKOFF,
    HANG_AFTER,
    HOOK_SECONDS,
    LEASE,
    LOG_LIMIT,
    PRELOAD,
    RESTART_CAUSES,
    SERVICE_RESTART,
    SYNC_LIMIT,
    HangAction,
    OnFailure,
    Program,
    RestartCause,
    SyncKind,
)
from forgectl.spec.hosts import DRIVERS_HOST, LOCAL, Env, Hosts, Model
from forgectl.spec.hosts import Host as Host  # noqa: PLC0414  (re-exported)
from forgectl.spec.problems import Place, find, problem
from forgectl.spec.scalars import (
    Backoff,
    Bool,
    ClassPath,
    Count,
    Interpreter,
    Lease,
    Name,
    Preloaded,
    Procs,
    ShellLine,
    Size,
    SomeText,
    Text,
    Within,
    Words,
    choice,
    choices,
    or_variable,
    spread,
)

Spread = Annotated[
    int | tuple[str, ...] | None,
    BeforeValidator(spread),
    or_variable({"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
StartMethod = Annotated[
    Literal["fork", "spawn"],
    BeforeValidator(choice("fork", "spawn")),
    or_variable({"enum": ["fork", "spawn"]}),
]
Router = Annotated[
    str,
    BeforeValidator(choice("round_robin", "least_loaded", "session")),
    or_variable({"enum": ["round_robin", "least_loaded", "session"]}),
]
Sync = Annotated[
    SyncKind,
    BeforeValidator(choice("content", "none")),
    or_variable({"enum": ["content", "none"]}),
]
Failure = Annotated[
    OnFailure,
    BeforeValidator(choice("stop", "continue")),
    or_variable({"enum": ["stop", "continue"]}),
]


RestartOn = Annotated[
    tuple[RestartCause, ...],
    BeforeValidator(choices(*RESTART_CAUSES)),
    or_variable({"type": "array", "items": {"enum": [*RESTART_CAUSES]}, "minItems": 1}),
]


HangDo = Annotated[
    HangAction,
    BeforeValidator(choice("report", "restart", "nothing")),
    or_variable({"enum": ["report", "restart", "nothing"]}),
]


class Hang(Model):
    """When a rank is taken for hung, and what is done then."""

    after: Within = Field(default=HANG_AFTER, description="Time without progress after which a rank hangs")
    start: Within | None = Field(
        default=None,
        description="Time until its first progress. If it is not given, 30m, and a rank that shows no sign of work is"
        " left alone",
    )
    do: HangDo = Field(
        default="report",
        description="report: say so, and save the stacks of all ranks; restart: then restart the mesh, as `restart:`"
        " allows; nothing: do not watch it",
    )
    logs: Bool = Field(default=False, description="Lines of the log are progress, too")


class Restart(Model):
    """Restart the whole mesh at most `max` times in the time `within`."""

    max: Count = Field(default=0, description="Maximum number of restarts; 0: never")
    within: Within | None = Field(default=None, description="The time in which they count; default: the whole run")
    backoff: Backoff = Field(
        default=BACKOFF,
        description="The first restart is at once, the second in a row after this time, each further one after twice"
        " the time of the one before, up to a minute; 0: all at once",
    )
    on: RestartOn = Field(
        default=RESTART_CAUSES, description="The causes for which it is restarted; any other is a failure for good"
    )


class Mesh(Model):
    """A group of processes that is started, supervised and shut down as one."""

    procs: Procs = Field(default=1, description="Number of processes (of a service: per replica)")
    hosts: Spread = Field(
        default=None, description="Spread evenly over this many hosts, or over these; default: as few as have room"
    )
    with_gpus: Bool = Field(default=False, description="One GPU per process")
    share_gpus_with: Name | None = Field(
        default=None,
        description="A mesh whose GPUs its ranks use: local rank i its i-th there, modulo their number",
    )
    env: Env = Field(default_factory=dict, description="Environment of its ranks")
    restart: Restart = Field(default=Restart(), description="When to restart it; default: never")
    time_limit: Within | None = Field(
        default=None, description="How long it may run, restarts included; then it has failed, with exit code 124"
    )
    hang: Hang = Field(default=Hang(), description="When a rank is taken for hung; default: after 10m, reported only")
    start_method: StartMethod = Field(default="fork", description="fork: from a warm fork server; spawn: afresh")
    python: Interpreter | None = Field(default=None, description="Another interpreter than the host's")
    preload: tuple[Preloaded, ...] = Field(
        default=PRELOAD, description="Modules that its fork server imports once; `NAME?`: where it is installed"
    )


class Actor(Mesh):
    """A mesh of one ForgeActor."""

    class_: ClassPath = Field(alias="class", description="module:Class, a ForgeActor")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of its constructor")

    @property
    def program(self) -> Program:
        """What each rank runs."""
        return Program("actor", self.class_)


class Service(Actor):
    """Replicas of an actor's mesh, and how the replica of a call is chosen."""

    restart: Restart = Field(
        default=Restart(max=SERVICE_RESTART.max, within=SERVICE_RESTART.within),
        description="When to restart a replica; default: 3 times within 10m",
    )
    num_replicas: Procs = Field(default=1, description="Number of equal meshes, named NAME.0, NAME.1 and so on")
    router: Router = Field(default="round_robin", description="How the replica of a call is chosen")


class Runnable(Model):
    """Something to run: exactly one of `run`, `module` and `command`."""

    run: Words | None = Field(default=None, description="A Python file and its arguments")
    module: Words | None = Field(default=None, description="A module and its arguments, as after python -m")
    command: Words | None = Field(default=None, description="Any program and its arguments")

    @property
    def program(self) -> Program:
        """What each rank runs; a file's path is as written, from workdir."""
        for kind, words in (("file", self.run), ("module", self.module), ("command", self.command)):
            if words:
                return Program(kind, words[0], words[1:])  # type: ignore[arg-type]
        raise ValueError("no run, module or command: the spec was not checked")


class Script(Runnable, Mesh):
    """A process group without actors: what torchrun runs."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_preload(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("command"):
            return {"preload": (), **value}
        return value


class Driver(Runnable):
    """The user's own controlling script: one process on the launching machine."""

    env: Env = Field(default_factory=dict, description="Its environment")
    python: Interpreter | None = Field(default=None, description="Another interpreter than forgectl's own")
    restart: Restart = Field(
        default=Restart(),
        description="When to start it again after a failure; actors and services live on, and the new one adopts them;"
        " default: never, and the run ends with it",
    )
    time_limit: Within | None = Field(
        default=None, description="How long it may run, restarts included; then the run has failed"
    )


class Hooks(Model):
    """Commands that the launching machine runs when something happens, with the event as JSON on standard input."""

    failed: ShellLine | None = Field(
        default=None, description="A mesh has failed for good. Text is a line for the shell, a list a program"
    )
    hung: ShellLine | None = Field(default=None, description="A mesh makes no progress")
    restarted: ShellLine | None = Field(default=None, description="A mesh begins anew after a failure")
    host_lost: ShellLine | None = Field(default=None, description="A host, or all that ran there, is lost")
    ended: ShellLine | None = Field(default=None, description="The run has ended, in whatever way; it waits for this")
    timeout: Within = Field(default=HOOK_SECONDS, description="What each may take; then it is ended")

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """Event → its command."""
        found = {name: getattr(self, name) for name in get_args(HookName)}
        return {name: words for name, words in found.items() if words}


class Body(Model):
    """The contents of a spec, except the run's name and folder."""

    hosts: Hosts = Field(default=(LOCAL,), description="Where ranks may run; default: [local]")
    env: Env = Field(default_factory=dict, description="Environment of every mesh")
    secrets: tuple[Text, ...] = Field(default=(), description="Names of variables taken from the launching environment")
    lease: Lease = Field(default=LEASE, description="How long agents live on without a controller")
    log_limit: Size = Field(default=LOG_LIMIT, description="Maximum disk space of the log of one rank")
    actors: dict[str, Actor] = Field(default_factory=dict, description="Meshes of actors, by name")
    services: dict[str, Service] = Field(default_factory=dict, description="Replicated actors, by name")
    scripts: dict[str, Script] = Field(default_factory=dict, description="Process groups without actors, by name")
    sync: Sync = Field(
        default="content", description="content: workdir is copied to ssh hosts; none: they have it under the same path"
    )
    sync_limit: Size = Field(default=SYNC_LIMIT, description="Maximum of what is copied of workdir")
    driver: Driver | None = Field(default=None, description="The user's own controlling script")
    spares: Count = Field(
        default=0,
        description="How many of the hosts, the last ones, are kept without ranks and with warm fork servers: one takes"
        " the place of a host that is lost",
    )
    on_failure: Failure | None = Field(
        default=None,
        description="stop: the first mesh that fails for good ends the run; continue: the others go on;"
        " default: a failed script ends a launch in the foreground",
    )
    on: Hooks | None = Field(default=None, description="Commands for events, such as `failed: ./notify.sh`")

    @property
    def spare_hosts(self) -> tuple[Host, ...]:
        """The last `spares` of `hosts`."""
        return self.hosts[len(self.hosts) - self.spares :] if self.spares else ()

    @property
    def has_driver(self) -> bool:
        """Whether the run has a driver on this machine: the user's script, or a process for its actors."""
        return bool(self.driver or self.actors or self.services)

    @property
    def all_hosts(self) -> tuple[Host, ...]:
        """`hosts`, and this machine if the run has a driver but no local host."""
        alone = self.has_driver and not any(host.local for host in self.hosts)
        return (*self.hosts, DRIVERS_HOST) if alone else self.hosts


class Document(Body):
    """A spec as it is written."""

    name: Name | None = Field(
        default=None, description="Name of the run; default: the file's stem; of forge.yaml, its folder's"
    )
    workdir: SomeText = Field(default=".", description="Where ranks start and import from; default: the spec's folder")


class Spec(Body):
    """A spec that was read and checked. `source` is its path as the user typed it."""

    name: Name
    source: str
    folder: Path
    workdir: Path
    _places: dict[str, Place] = PrivateAttr(default_factory=dict)
    _text: bytes = PrivateAttr(default=b"")

    @property
    def text(self) -> bytes:
        """The text that was read and checked; a run keeps it, as the file may have changed since."""
        return self._text

    def problem(self, where: str, message: str) -> SpecProblem:
        """A problem with the value at a dotted path, placed there or at the nearest value around it."""
        return problem(where, message, find(where, self._places))
