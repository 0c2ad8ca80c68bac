"""What `@endpoint` makes of a method, and what a handle has, for type checkers and editors; no process imports this.

In a process the mark leaves the method as it is, and a handle finds it by its name. A checker sees one type for both:
the class of the user is also the type of its handles.
"""

import builtins
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from typing_extensions import Self

from forgectl.actor.stream import Stream
from forgectl.actor.value_mesh import ValueMesh
from forgectl.system.futures import Future

P = ParamSpec("P")
R = TypeVar("R")
D_co = TypeVar("D_co", covariant=True)
"""What a call in the class itself gives: of an `async` method a coroutine."""
R_co = TypeVar("R_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)
"""What one call of a batch gives."""

class ActorMethod(Generic[P, D_co, R_co]):
    """An endpoint: called by its handle in one of these ways, or directly in its own class and in tests of it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> D_co:
        """Call the method itself, in this process. A handle has no such call."""

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Future[ValueMesh[R_co]]:
        """Call every rank: a ValueMesh of their values, by rank."""

    def call_one(self, *args: P.args, **kwargs: P.kwargs) -> Future[R_co]:
        """Call the only rank: its value. Raises ValueError if the handle has several: select one by `slice`."""

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> Future[R_co]:
        """Call one rank, chosen at random: its value."""

    def broadcast(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call every rank without an answer: what the endpoint raises goes to the rank's log."""

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R_co]:
        """Call every rank: `async for value in handle.endpoint.stream(…)` yields the values as they arrive."""

class EndpointMethod(ActorMethod[P, D_co, R_co]):
    """An endpoint that a service calls as an actor does."""

    @overload
    def route(self, *args: P.args, **kwargs: P.kwargs) -> Future[R_co]:
        """Of a service: call one healthy replica, chosen by the current session or else by the router: its value."""

    @overload
    def route(self, *args: Any, sess_id: str | None, **kwargs: Any) -> Future[R_co]:
        """Of a service: call the replica of a session: its value."""

    def fanout(self, *args: P.args, **kwargs: P.kwargs) -> Future[list[R_co]]:
        """Of a service: call every healthy replica: their values in the order of replicas."""

class BatchedMethod(ActorMethod[P, D_co, R_co], Generic[P, D_co, R_co, V_co]):
    """An endpoint with a `batch_size`: a service makes lists of the arguments of its calls, which no type can say."""

    def route(self, *args: Any, sess_id: str | None = None, **kwargs: Any) -> Future[V_co]:
        """Of a service: call one healthy replica, in a batch with other calls: the result of this one."""

    def fanout(self, *args: Any, **kwargs: Any) -> Future[list[V_co]]:
        """Of a service: call every healthy replica: their results in the order of replicas."""

class StreamMethod(Generic[P, R_co]):
    """An endpoint that is an async generator: `async for value in handle.endpoint.stream(…)`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R_co]:
        """Call the method itself, in this process. A handle has no such call."""

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R_co]:
        """The values, as they are yielded."""

class Mark(Protocol):
    """Makes an `async` or plain method an endpoint."""

    @overload
    def __call__(
        self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> EndpointMethod[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # of two that fit the first one counts
        self, method: Callable[Concatenate[Any, P], AsyncIterator[R]], /
    ) -> StreamMethod[P, R]: ...
    @overload
    def __call__(self, method: Callable[Concatenate[Any, P], R], /) -> EndpointMethod[P, R, R]: ...

class ConcurrentMark(Protocol):
    """Makes an `async` method an endpoint."""

    @overload
    def __call__(
        self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> EndpointMethod[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(self, method: Callable[Concatenate[Any, P], AsyncIterator[R]], /) -> StreamMethod[P, R]: ...

class BatchMark(Protocol):
    """Makes a method that takes lists, and returns one, an endpoint whose calls a service gathers."""

    @overload
    def __call__(
        self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, list[R]]], /
    ) -> BatchedMethod[P, Coroutine[Any, Any, list[R]], list[R], R]: ...
    @overload
    def __call__(self, method: Callable[Concatenate[Any, P], list[R]], /) -> BatchedMethod[P, list[R], list[R], R]: ...

class Unspecified:
    """A parameter that no constructor has: only a class whose constructor mypy does not know seems to take it."""

class InHandles:
    """What the handles of a class have beside its endpoints, and its instances have not.

    `Any`: what classes of users are likely to have, too, with other types.
    """

    def slice(self, *, procs: int | builtins.slice) -> Self:
        """Some of the ranks: `slice(procs=0)`, or `slice(procs=slice(2, 4))`. Raises ValueError if none is selected."""

    def __len__(self) -> int: ...
    def __enter__(self) -> Self:
        """`with Counter.as_actor().get() as counter:` shuts it down at the end of the block, in plain code."""

    def __exit__(self, *error: object) -> None: ...
    async def __aenter__(self) -> Self:
        """`async with await Counter.as_actor() as counter:` shuts it down at the end of the block."""

    async def __aexit__(self, *error: object) -> None: ...

    adopted: bool
    """Whether the driver was restarted, and this is what the driver before it launched, with its state."""
    name: str | Any
    """Of a service: its name. The meshes of its replicas are NAME.0, NAME.1 and so on."""
    session: Any
    """Of a service: `async with service.session():` calls inside go to one replica as long as it lives."""
    scale: Any
    """Of a service: `await service.scale(N)` changes the number of its replicas."""
    metrics: Any
    """Of a service: `service.metrics()` gives totals, latencies and queues."""

    async def start_session(self) -> str:
        """Of a service: start a session and return its id, for `route(…, sess_id=ID)`."""

    async def terminate_session(self, session: str) -> None:
        """Of a service: end a session; raises NotFoundError if it is unknown."""
