"""Gathers scalar calls of one endpoint into a call with lists, and gives each caller its own result."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.replica import ATTEMPTS, Replica, ReplicaMesh, Request
from forgectl.actor.service.service_call import ServiceCall
from forgectl.errors import ActorDied
from forgectl.system.tasks import Background

Key = tuple[str, int | None, int, frozenset[str]]
"""Calls with equal keys share a batch: endpoint, index of the session's replica, number of positional arguments, names
of keyword arguments."""
NO_REPLICA = -1
"""In place of the replica's index, for calls of a session that arrive while no replica is healthy."""


class BatchItem:
    """One caller's part of a batch."""

    def __init__(self, batch: Batch, call: ServiceCall) -> None:
        self.batch = batch
        self.call = call
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if self.future.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(error)


class Batch(Request):
    """Calls that are sent as one. It gathers calls until `close`, waits for its turn, then runs in its own task."""

    def __init__(self, batcher: Batcher, endpoint: str, info: EndpointInfo, key: Key, in_sessions: bool) -> None:
        super().__init__(endpoint)
        self.info = info
        self.key = key
        self.items: list[BatchItem] = []
        self.timer: asyncio.TimerHandle | None = None
        self._batcher = batcher
        self._in_sessions = in_sessions
        self._attempts = 0
        self._started = False
        self._task: asyncio.Task[None] | None = None

    @property
    def weight(self) -> int:
        return len(self.items)

    def drop(self, item: BatchItem) -> None:
        """Leave out a call whose caller is gone, unless the batch has started."""
        if self._started or item not in self.items:
            return
        self.items.remove(item)
        if self.queue is not None:
            self.queue.size -= 1
            if not self.items:
                self.queue.discard(self)
        elif self.replica is None and not self.items:
            self._batcher.forget(self)

    def parts(self, choose: Callable[[str, str | None], Replica | None]) -> list[tuple[Request, Replica | None]]:
        """Itself and its replica; one batch per replica if its sessions are on different replicas now."""
        if not self._in_sessions:
            return [(self, choose(self.endpoint, None))]
        groups: dict[Replica | None, list[BatchItem]] = {}
        for item in self.items:
            groups.setdefault(choose(self.endpoint, item.call.session), []).append(item)
        return [(self._part(items, n), replica) for n, (replica, items) in enumerate(groups.items())]

    def _part(self, items: list[BatchItem], number: int) -> Batch:
        part = self if number == 0 else Batch(self._batcher, self.endpoint, self.info, self.key, True)
        part.items = items
        part._attempts = self._attempts
        for item in items:
            item.batch = part
        return part

    def granted(self) -> None:
        assert self.replica is not None
        self._task = self._batcher.tasks.begin(self._run(self.replica))

    def revoked(self) -> None:
        assert self._task is not None
        self._task.cancel()  # before its first step

    def fail(self, error: BaseException) -> None:
        for item in self.items:
            item.fail(error)

    async def _run(self, replica: Replica) -> None:
        self._started = True
        replica.started(self)
        items = self.items = [item for item in self.items if not item.future.done()]
        if not items:
            replica.release()
            return
        calls = [item.call for item in items]
        args = tuple(list(values) for values in zip(*(call.args for call in calls), strict=True))
        kwargs = {name: [call.kwargs[name] for call in calls] for name in calls[0].kwargs}
        try:
            work = functools.partial(_call, self.endpoint, args, kwargs)
            result = await replica.call(self.endpoint, work, [call.began for call in calls])
            values = checked(self.endpoint, result, len(items))
        except Exception as error:
            if not self._again(error, replica):
                self.fail(error)
            return
        except BaseException as error:
            self.fail(error)
            raise
        for item, value in zip(items, values, strict=True):
            if not item.future.done():
                item.future.set_result(value)

    def _again(self, error: Exception, replica: Replica) -> bool:
        """Send it to another replica if this one died and the endpoint is idempotent; whether it was sent."""
        self._attempts += 1
        if not (isinstance(error, ActorDied) and replica.owns(error) and self.info.idempotent):
            return False
        if self._attempts >= ATTEMPTS:
            return False
        self.items = [item for item in self.items if not item.future.done()]
        self.replica = None
        self._started = False
        if self.items:
            self._batcher.place(self)
        return True


async def _call(endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], mesh: ReplicaMesh) -> Any:
    return await mesh.call(endpoint, args, kwargs)


def checked(endpoint: str, result: Any, count: int) -> list[Any] | tuple[Any, ...]:
    """Return `result` if it is a list of `count` results, one for each call; else raise TypeError or ValueError."""
    what = f"{endpoint} has batch_size > 1: it must return a list with a result for each of the {count} calls"
    if not isinstance(result, (list, tuple)):
        raise TypeError(f"{what}, not {type(result).__name__}")
    if len(result) != count:
        raise ValueError(f"{what}, not {len(result)}")
    return result


class Batcher:
    """The batches that still gather calls. `place` sends a batch to a replica; it must not raise."""

    def __init__(self, place: Callable[[Request], None]) -> None:
        self.place = place
        self.tasks = Background()
        self._open: dict[Key, Batch] = {}

    def gathering(self) -> int:
        """The number of calls in batches that still gather."""
        return sum(len(batch.items) for batch in list(self._open.values()))

    async def call(self, call: ServiceCall, index: int | None) -> Any:
        """Return this caller's result. `index`: of its session's replica, NO_REPLICA, or None outside sessions.

        A call without arguments never shares a batch, because the method could not see how many calls there are.
        """
        key = (call.endpoint, index, len(call.args), frozenset(call.kwargs))
        batch = self._open.get(key)
        if batch is None:
            batch = self._open[key] = Batch(self, call.endpoint, call.info, key, call.session is not None)
            batch.timer = asyncio.get_running_loop().call_later(call.info.batch_timeout, self.close, batch)
        item = BatchItem(batch, call)
        batch.items.append(item)
        if len(batch.items) >= call.info.batch_size or not (call.args or call.kwargs):
            self.close(batch)
        try:
            return await item.future
        except asyncio.CancelledError:
            item.batch.drop(item)
            raise

    def close(self, batch: Batch) -> None:
        """Add no more calls to the batch, and send it to a replica."""
        self.forget(batch)
        self.place(batch)

    def forget(self, batch: Batch) -> None:
        """Add no more calls to the batch."""
        if self._open.get(batch.key) is batch:
            del self._open[batch.key]
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None

    def flush(self, index: int) -> None:
        """Close the batches of sessions on this replica, because some of these sessions will move to another one."""
        for batch in [batch for batch in self._open.values() if batch.key[1] == index]:
            self.close(batch)

    def stop(self, error: Callable[[], Exception]) -> None:
        """Fail all calls in batches that still gather."""
        for batch in list(self._open.values()):
            self.forget(batch)
            batch.fail(error())
