"""The ranks of one generation of a mesh, and the calls that wait for them: answered, or cut short."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import sys
from collections.abc import Callable
from typing import Any

from forgectl.actor.engine import ActorError, SupervisionError
from forgectl.actor.mesh import again
from forgectl.actor.raised import Raised, RemoteTraceback, original
from forgectl.errors import ActorDied

Start = Callable[[Any, int], Any]
"""Sends a call: (the shells, its number) → Monarch's future of what they answer."""

NEWS_SECONDS = 3.0
"""How long to wait for the agents to say why, once Monarch has said that something died."""

_numbers = itertools.count(1)
_waiting: dict[int, _Call] = {}


class _Call:
    """One call that waits, in whatever loop. `cause` is why it was cut short."""

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future
        self.loop = future.get_loop()
        self.cause: ActorDied | Raised | None = None

    def cut(self, cause: ActorDied | Raised) -> None:
        self.cause = cause
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.future.cancel)

    def raise_cause(self) -> None:
        """Raise why it was cut short, if it was."""
        if isinstance(self.cause, ActorDied):
            raise again(self.cause) from None
        if self.cause is not None:
            error, remote = original(self.cause)
            raise error from remote


def cut(number: int, cause: Raised) -> None:
    """End a call by what one of its ranks raised: the others may wait for that rank, and would for ever."""
    if (call := _waiting.get(number)) is not None:
        call.cut(cause)


class Shells:
    """One generation's shells, and the calls that wait for them."""

    def __init__(self, mesh: str, generation: int, monarchs: Any, give_up: Callable[[str], None] | None = None) -> None:
        self.mesh = mesh
        self.generation = generation
        self.monarchs = monarchs
        self._give_up = give_up  # in the driver alone: told when Monarch has lost what still runs
        self._death: concurrent.futures.Future[ActorDied] = concurrent.futures.Future()
        self._calls: set[_Call] = set()

    @property
    def died(self) -> ActorDied | None:
        """Why it is no more; None while it lives."""
        return self._death.result() if self._death.done() else None

    async def call(self, start: Start, timeout: float | None = None) -> Any:
        """Send what `start` sends and await the answer.

        Raises ActorDied as soon as the agents tell of a death, the exception of the first rank that raises with the
        remote traceback as its cause, or TimeoutError after `timeout` seconds.
        """
        if self.died is not None:
            raise again(self.died)
        number = next(_numbers)
        call = _Call(start(self.monarchs, number if self._give_up else 0).as_asyncio())  # errors go to the driver
        self._calls.add(call)
        _waiting[number] = call
        try:
            if self.died is not None:  # meanwhile, in another thread
                raise again(self.died)
            if timeout is None:
                return await call.future
            return await asyncio.wait_for(call.future, timeout)
        except asyncio.CancelledError:
            if not _was_cancelled():
                call.raise_cause()
            raise
        except ActorError as e:
            error, remote = _original(e)
            raise error from remote
        except SupervisionError as e:
            raise await self.cause(str(e)) from None
        finally:
            del _waiting[number]
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
            if self._give_up is not None:
                self._give_up(monarchs_word)
            return ActorDied(f"mesh {self.mesh} cannot be reached any more: {monarchs_word}", mesh=self.mesh)


def _original(error: Any) -> tuple[Exception, RemoteTraceback]:
    """The exception behind Monarch's ActorError: not always the user's (a value that cannot be pickled)."""
    raised = error.exception
    if isinstance(raised, Raised):
        return original(raised)
    return raised if isinstance(raised, Exception) else RuntimeError(str(error)), RemoteTraceback(str(error))


def _was_cancelled() -> bool:
    """Whether the caller's own task is to end, too (not known before Python 3.11)."""
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0
