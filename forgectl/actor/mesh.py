"""A mesh of actors as its callers have it: what it is now, and calls that end when it dies."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from forgectl.actor.endpoint import Interface
from forgectl.actor.engine import ActorError, SupervisionError
from forgectl.actor.raised import original
from forgectl.errors import ActorDied

T = TypeVar("T")
Start = Callable[[Any], Any]  # the shells of a mesh → Monarch's future of what they answer

NEWS_SECONDS = 3.0
"""How long to wait for the agents to say why, once Monarch has said that something died."""


class _Call:
    """One call that waits, in whatever loop. `died` is why it was cut short."""

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future
        self.loop = future.get_loop()
        self.died: ActorDied | None = None

    def cut(self, why: ActorDied) -> None:
        self.died = why
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.future.cancel)


class Shells:
    """One generation's shells, and the calls that wait for them."""

    def __init__(
        self, mesh: str, generation: int, monarchs: Any, give_up: Callable[[str], None] = lambda word: None
    ) -> None:
        self.mesh = mesh
        self.generation = generation
        self.monarchs = monarchs
        self._give_up = give_up  # told when Monarch has lost what still runs
        self._death: concurrent.futures.Future[ActorDied] = concurrent.futures.Future()
        self._calls: set[_Call] = set()

    @property
    def died(self) -> ActorDied | None:
        """Why it is no more; None while it lives."""
        return self._death.result() if self._death.done() else None

    async def call(self, start: Start, timeout: float | None = None) -> Any:
        """Send what `start` sends and await the answer.

        Raises ActorDied as soon as the agents tell of a death, the endpoint's own exception with the remote traceback
        as its cause, or TimeoutError after `timeout` seconds.
        """
        if self.died is not None:
            raise again(self.died)
        call = _Call(start(self.monarchs).as_asyncio())
        self._calls.add(call)
        try:
            if self.died is not None:  # meanwhile, in another thread
                raise again(self.died)
            if timeout is None:
                return await call.future
            return await asyncio.wait_for(call.future, timeout)
        except asyncio.CancelledError:
            if call.died is None or _was_cancelled():
                raise
            raise again(call.died) from None
        except ActorError as e:
            error, remote = original(e)
            raise error from remote
        except SupervisionError as e:
            raise await self.cause(str(e)) from None
        finally:
            self._calls.discard(call)

    def die(self, why: ActorDied) -> None:
        """Cut all calls short, and refuse later ones. From any thread."""
        if not self._death.done():
            self._death.set_result(why)
            for call in list(self._calls):
                call.cut(why)

    async def cause(self, monarchs_word: str) -> ActorDied:
        """What the agents say of a death that Monarch was first to notice."""
        news = asyncio.shield(asyncio.wrap_future(self._death))
        try:
            return again(await asyncio.wait_for(news, NEWS_SECONDS))
        except (asyncio.TimeoutError, TimeoutError):
            self._give_up(monarchs_word)
            return ActorDied(f"mesh {self.mesh} cannot be reached any more: {monarchs_word}", mesh=self.mesh)


def _was_cancelled() -> bool:
    """Whether the caller's own task is to end, too (not known before Python 3.11)."""
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0


def again(died: ActorDied) -> ActorDied:
    """A copy to raise: an exception that many raise would gather the tracebacks of all."""
    copy = ActorDied.__new__(ActorDied)
    copy.__dict__.update(died.__dict__)
    copy.args = died.args
    return copy


class Mesh(Protocol):
    """What a handle needs of its mesh."""

    name: str
    interface: Interface
    procs: int

    def foreign(self) -> Any:
        """The mesh as other processes may have it; raises ActorDied while it is not up."""
        ...

    async def shells(self) -> Shells:
        """Those of the living generation; waits while it restarts, and raises ActorDied once it is over."""
        ...

    def now(self) -> Shells | None:
        """Those of the living generation, if it is up."""
        ...

    async def shutdown(self, grace: float) -> None:
        """End it, and return when nothing is left of it."""
        ...


def died(document: dict[str, Any], *, mesh: str) -> ActorDied:
    """What a mesh's state in `status` says of its death."""
    failure = document.get("failure") or document.get("last_failure") or {}
    what = failure.get("message") or document.get("reason") or f"it is {document['state']}"
    tail = tuple(failure.get("log_tail") or ())
    text = f"mesh {mesh}: {what}"
    if tail:
        text += "\nthe last lines of its log:\n" + "\n".join(f"  {line}" for line in tail[-10:])
    return ActorDied(
        text,
        mesh=mesh,
        rank=failure.get("rank"),
        host=failure.get("host"),
        rank_exit_code=failure.get("exit_code"),
        signal=failure.get("signal"),
        log_tail=tail,
    )
