"""Marks methods that other processes may call. Marks only: the class can be used and tested without a mesh."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import field
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from forgectl.frozen import dataclass
from forgectl.names import nearest

if TYPE_CHECKING:
    from forgectl.actor.handle_types import BatchMark, ConcurrentMark, EndpointMethod, Mark, StreamMethod

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
MARK = "__forge_endpoint__"
SETUP = "setup"
MONARCHS_CONCURRENT = {"_ConcurrentEndpointProperty"}
MONARCHS = {"EndpointProperty", *MONARCHS_CONCURRENT}
"""Class names of what Monarch's decorators return: names, so that nothing here has to import Monarch."""


@dataclass(frozen=True)
class EndpointInfo:
    """How an endpoint is called, apart from its signature.

    idempotent: a service may call it again on another replica if the first one dies during the call.
    router: a name or class that replaces the service's router for this endpoint.
    batch_size: a service gathers up to this many calls into one call, whose arguments are lists.
    batch_timeout: seconds that the first call of a batch waits for others.
    concurrent: it runs without waiting for other endpoints of its rank.
    """

    idempotent: bool = False
    router: Any = None
    batch_size: int = 1
    batch_timeout: float = 0.01
    concurrent: bool = False


@overload
def endpoint(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
) -> EndpointMethod[P, Coroutine[Any, Any, R], R]: ...
@overload
def endpoint(  # type: ignore[overload-overlap]
    method: Callable[Concatenate[Any, P], AsyncIterator[R]], /
) -> StreamMethod[P, R]: ...
@overload
def endpoint(method: Callable[Concatenate[Any, P], R], /) -> EndpointMethod[P, R, R]: ...
@overload
def endpoint(*, idempotent: bool = False, concurrent: Literal[False] = False) -> Mark: ...
@overload
def endpoint(*, idempotent: bool = False, concurrent: bool) -> ConcurrentMark: ...
def endpoint(method: Any = None, /, *, idempotent: bool = False, concurrent: bool = False) -> Any:
    """Make a method, `async` or plain, an endpoint of its actor: `handle.method.call(…)` runs it on every rank.

    A plain method runs in a thread of the rank, so that it does not block the rank's event loop. A rank runs one
    endpoint at a time, in the order of the calls. An endpoint with collectives (all_reduce, barrier) must stay so: with
    two at once on each rank, ranks could enter their collectives in different orders, and wait for each other forever.

    idempotent: a service may repeat a call whose replica died during the call. concurrent: for `async` methods without
    collectives; the call does not wait for its turn and lets others in while it awaits, so that it may wait for another
    call of the same rank. Raises TypeError for a plain method that is to be concurrent.

    An `async` method with `yield` streams: `async for value in handle.method.stream(…)`. Its turn lasts until its
    generator has ended; with concurrent=True it needs none. When the caller leaves the stream early or dies, the
    generator is cancelled where it waits, or closed at its `yield`: its `finally` blocks run.
    """
    mark = _marker(EndpointInfo(idempotent=idempotent, concurrent=concurrent))
    return mark if method is None else mark(method)


@overload
def service_endpoint(*, router: Any = None, idempotent: bool = False, concurrent: Literal[False] = False) -> Mark: ...
@overload
def service_endpoint(*, router: Any = None, idempotent: bool = False, concurrent: bool) -> ConcurrentMark: ...
@overload
def service_endpoint(
    *,
    router: Any = None,
    batch_size: int,
    batch_timeout: float = 0.01,
    idempotent: bool = False,
    concurrent: bool = False,
) -> BatchMark: ...
def service_endpoint(
    *,
    router: Any = None,
    batch_size: int = 1,
    batch_timeout: float = 0.01,
    idempotent: bool = False,
    concurrent: bool = False,
) -> Any:
    """An endpoint with its own settings in a service; on an actor it works like `endpoint`.

    `router` is as in `options(router=…)`. With `batch_size` above 1 a service gathers scalar calls: the method gets,
    for each argument, a list of up to `batch_size` values in the order of the calls, and returns one result per call.
    A batch starts when it is full, or `batch_timeout` seconds after its first call. Raises ValueError for a
    `batch_size` below 1 or a negative `batch_timeout`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
    if batch_timeout < 0:
        raise ValueError(f"batch_timeout is {batch_timeout}; seconds cannot be negative")
    return _marker(EndpointInfo(idempotent, router, batch_size, batch_timeout, concurrent))


def _marker(info: EndpointInfo) -> Callable[[F], F]:
    def mark(method: F) -> F:
        if not callable(method):
            raise TypeError(f"an endpoint is a method, not {type(method).__name__}")
        streams = inspect.isasyncgenfunction(method)
        if streams and info.batch_size > 1:
            raise TypeError(f"{method.__qualname__} streams, and so cannot have batches")
        if info.concurrent and not streams and not inspect.iscoroutinefunction(method):
            raise TypeError(f"{method.__qualname__} is not async, and so cannot be concurrent: it would block its rank")
        setattr(method, MARK, info)
        return method

    return mark


def endpoints_of(cls: type) -> dict[str, EndpointInfo]:
    """Name → info of every endpoint of a class, including those marked with Monarch's `@endpoint`."""
    members = ((name, inspect.getattr_static(cls, name)) for name in dir(cls))
    return {name: info for name, member in members if (info := info_of(name, member)) is not None}


def info_of(name: str, member: Any) -> EndpointInfo | None:
    """The info of an endpoint; None for another member of a class. `setup` is an endpoint with or without a mark."""
    info: EndpointInfo | None = getattr(member, MARK, None)
    if info is None and (kinds := {c.__name__ for c in type(member).__mro__}) & MONARCHS:
        return EndpointInfo(concurrent=bool(kinds & MONARCHS_CONCURRENT))
    return EndpointInfo() if info is None and name == SETUP and callable(member) else info


def method_of(cls: type, name: str) -> Callable[..., Any]:
    """The function behind an endpoint, whether marked by Monarch's decorator or by ours."""
    member = inspect.getattr_static(cls, name)
    method = getattr(member, "_method", member)
    if type(member).__name__ in MONARCHS_CONCURRENT:  # wrapped in a function that takes one of Monarch's ports
        method = inspect.unwrap(method)
    return method  # type: ignore[no-any-return]


def streaming_of(cls: type) -> frozenset[str]:
    """The endpoints that stream: async generators."""
    return frozenset(name for name in endpoints_of(cls) if inspect.isasyncgenfunction(method_of(cls, name)))


def streams_only(label: str, name: str) -> str:
    """The message for a call of another kind than `stream`."""
    return f"{label} yields a stream of values: use `async for value in ….{name}.stream(…)`"


class Source(str):
    """An annotation or a default by its source: messages show it without quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature_of(cls: type, name: str) -> inspect.Signature:
    """An endpoint's signature as its callers see it, without `self`."""
    signature = inspect.signature(method_of(cls, name))
    parameters = [p.replace(annotation=_shown(p.annotation)) for p in list(signature.parameters.values())[1:]]
    return signature.replace(parameters=parameters, return_annotation=_shown(signature.return_annotation))


def _shown(annotation: Any) -> Any:
    return Source(annotation) if isinstance(annotation, str) else annotation


@dataclass(frozen=True)
class Interface:
    """A class as its callers know it: its name, its endpoints and their signatures. Unpickles without the class."""

    name: str
    endpoints: dict[str, str]
    unmarked: frozenset[str] = frozenset()  # methods that are not endpoints
    streaming: frozenset[str] = frozenset()  # endpoints that yield their values
    docs: dict[str, str | None] = field(default_factory=dict)

    def unknown(self, name: str) -> str:
        """The message for an unknown endpoint: it names the nearest endpoint and lists all of them."""
        near = nearest(name, self.endpoints)
        guess = f"; did you mean {near!r}?" if near else ""
        there = ", ".join(f"{n}{signature}" for n, signature in sorted(self.endpoints.items())) or "none"
        why = f"{self.name} has no endpoint {name!r}"
        if name in self.unmarked:
            why = f"{self.name}.{name} is not marked @endpoint"
        return f"{why}{guess}; endpoints: {there}"


def interface_of(cls: type) -> Interface:
    endpoints = {name: str(signature_of(cls, name)) for name in endpoints_of(cls)}
    own = {n for c in cls.__mro__ if c.__module__.partition(".")[0] not in ("forgectl", "monarch") for n in vars(c)}
    unmarked = {n for n in own if callable(getattr(cls, n, None)) and not n.startswith("__")} - endpoints.keys()
    docs = {name: inspect.getdoc(method_of(cls, name)) for name in endpoints}
    return Interface(cls.__name__, endpoints, frozenset(unmarked), streaming_of(cls), docs)
