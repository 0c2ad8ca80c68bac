"""What makes a method callable from elsewhere. Pure marks: the class itself can be used, and tested, without a mesh."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from forgectl.frozen import dataclass
from forgectl.names import nearest

F = TypeVar("F", bound=Callable[..., Any])
MARK = "__forge_endpoint__"
MONARCHS_CONCURRENT = {"_ConcurrentEndpointProperty"}
MONARCHS = {"EndpointProperty", *MONARCHS_CONCURRENT}
"""What Monarch's decorators make, by the names of its classes: nobody need import it."""


@dataclass(frozen=True)
class EndpointInfo:
    """How an endpoint is called, beside its signature.

    idempotent: a service may call it again on another replica when one dies meanwhile. router: a name or class,
    instead of the service's own. batch_size: a service gathers up to so many calls into one, whose arguments are
    lists; batch_timeout: seconds that the first of them waits for others. concurrent: it does not wait for its turn.
    """

    idempotent: bool = False
    router: Any = None
    batch_size: int = 1
    batch_timeout: float = 0.01
    concurrent: bool = False


@overload
def endpoint(method: F) -> F: ...
@overload
def endpoint(*, idempotent: bool = False) -> Callable[[F], F]: ...
def endpoint(method: F | None = None, *, idempotent: bool = False) -> F | Callable[[F], F]:
    """Make a method, `async` or plain, an endpoint of its actor: `handle.method.call(…)` runs it on every rank.

    A plain one runs in a thread of the rank, so that it does not block the rank's event loop. A rank runs one
    endpoint at a time. With `idempotent` a service may repeat a call whose replica died while it ran.
    """
    mark = _marker(EndpointInfo(idempotent=idempotent))
    return mark if method is None else mark(method)


def service_endpoint(
    *, router: Any = None, batch_size: int = 1, batch_timeout: float = 0.01, idempotent: bool = False
) -> Callable[[F], F]:
    """An endpoint with settings of its own in a service; on an actor it is like `endpoint`.

    `router` as in `options(router=…)`. With `batch_size` above 1 scalar calls are gathered: the method gets a list
    for each argument, of up to `batch_size` values in the order of the calls, and returns as many results. A batch
    starts when it is full, or `batch_timeout` seconds after its first call. Raises ValueError for other values.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
    if batch_timeout < 0:
        raise ValueError(f"batch_timeout is {batch_timeout}; seconds cannot be negative")
    return _marker(EndpointInfo(idempotent, router, batch_size, batch_timeout))


def _marker(info: EndpointInfo) -> Callable[[F], F]:
    def mark(method: F) -> F:
        if not callable(method):
            raise TypeError(f"an endpoint is a method, not {type(method).__name__}")
        setattr(method, MARK, info)
        return method

    return mark


def endpoints_of(cls: type) -> dict[str, EndpointInfo]:
    """Name → info of every endpoint of a class, Monarch's own `@endpoint` included; `setup` counts if defined."""
    found = {}
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        info = getattr(member, MARK, None)
        if info is None and (kinds := {c.__name__ for c in type(member).__mro__}) & MONARCHS:
            info = EndpointInfo(concurrent=bool(kinds & MONARCHS_CONCURRENT))
        if info is not None:
            found[name] = info
    return found


def method_of(cls: type, name: str) -> Callable[..., Any]:
    """The function behind an endpoint, Monarch's or ours."""
    member = inspect.getattr_static(cls, name)
    method = getattr(member, "_method", member)
    if type(member).__name__ in MONARCHS_CONCURRENT:  # it is behind one that takes a port of Monarch's
        method = inspect.unwrap(method)
    return method  # type: ignore[no-any-return]


def signature_of(cls: type, name: str) -> inspect.Signature:
    """An endpoint's signature as its callers see it, without `self`."""
    signature = inspect.signature(method_of(cls, name))
    return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclass(frozen=True)
class Interface:
    """What callers know of a class: its name, and its endpoints with their signatures. Needs no import to unpickle."""

    name: str
    endpoints: dict[str, str]
    unmarked: frozenset[str] = frozenset()  # methods that are no endpoints

    def unknown(self, name: str) -> str:
        """What to say of an endpoint that is none: the nearest, and all that there are."""
        near = nearest(name, self.endpoints)
        guess = f"; did you mean {near!r}?" if near else ""
        there = ", ".join(f"{n}{signature}" for n, signature in sorted(self.endpoints.items())) or "none"
        why = f"{self.name} has no endpoint {name!r}"
        if name in self.unmarked:
            why = f"{self.name}.{name} is not marked @endpoint"
        return f"{why}{guess}; endpoints: {there}"


def interface_of(cls: type) -> Interface:
    """The interface of a class."""
    endpoints = {name: str(signature_of(cls, name)) for name in endpoints_of(cls)}
    own = {n for c in cls.__mro__ if c.__module__.partition(".")[0] not in ("forgectl", "monarch") for n in vars(c)}
    unmarked = {n for n in own if callable(getattr(cls, n, None)) and not n.startswith("__")} - endpoints.keys()
    return Interface(cls.__name__, endpoints, frozenset(unmarked))
