"""The answer of a call that is under way: awaited in any event loop, or waited for from plain code."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from forgectl.system.loops import in_loop, running_loop, stands_still

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger("forgectl")
_lock = threading.Lock()  # of every future's state; held for a few instructions


class Future(Coroutine[Any, Any, R]):
    """What a call gives: `await` it, `asyncio.gather` it, or `get()` it from plain code.

    The call is sent when it is made, whether or not anybody awaits it. It can be awaited several times, in any event
    loop; wherever asyncio takes a coroutine it takes a Future, too (`asyncio.run`, `create_task`). As with asyncio's
    own, the call is cancelled when a task that awaits it is; `asyncio.shield` prevents that. An exception that nobody
    retrieves is logged once.
    """

    __slots__ = ("__weakref__", "_abandon", "_callbacks", "_done", "_error", "_label", "_steps", "_unseen", "_value")

    def __init__(self, label: str, abandon: Callable[[], None] | None = None) -> None:
        """`label` names the call in messages. `abandon` stops the work; None: it is enough that nobody waits."""
        self._label = label
        self._abandon = abandon
        self._callbacks: list[Callable[[Future[R]], Any]] = []
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._unseen = False  # whether it holds an exception that nobody has retrieved
        self._steps: dict[Any, Generator[Any, Any, R]] = {}  # of tasks that run it as their coroutine

    @classmethod
    def failed(cls, label: str, error: BaseException) -> Future[R]:
        """One that has failed already: errors of a call come from where it is awaited, whenever they are found."""
        future: Future[R] = Future(label)
        future.fail(error)
        return future

    @classmethod
    def of(cls, work: Coroutine[Any, Any, R], loop: asyncio.AbstractEventLoop, label: str) -> Future[R]:
        """Run a coroutine as a task in `loop`, from any thread. A cancelled one is done when it has cleaned up."""
        tasks: list[asyncio.Task[R]] = []

        def cancel() -> None:
            tasks[0].cancel()

        future: Future[R] = Future(label, lambda: in_loop(loop, cancel))

        def settle(task: asyncio.Task[R]) -> None:
            if task.cancelled():
                future.fail(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                future.fail(error)
            else:
                future.succeed(task.result())

        def begin() -> None:
            tasks.append(loop.create_task(work))
            tasks[0].add_done_callback(settle)

        if loop is running_loop():
            begin()
        else:
            loop.call_soon_threadsafe(begin)
        return future

    # ------------------------------------------------------------ the side that answers

    def succeed(self, value: R) -> bool:
        """End it with a value, from any thread; False where it has ended already."""
        return self._settle(value, None)

    def fail(self, error: BaseException) -> bool:
        """End it with an exception."""
        return self._settle(None, error)

    def _settle(self, value: Any, error: BaseException | None) -> bool:
        with _lock:
            if self._done:
                return False
            self._value, self._error = value, error
            self._unseen = error is not None and not isinstance(error, asyncio.CancelledError)
            self._done = True
            callbacks, self._callbacks = self._callbacks, []
        self._abandon = None
        self._ended()
        for callback in callbacks:
            callback(self)
        return True

    def _ended(self) -> None:
        """For subclasses: it has just been settled, in whatever thread."""

    def _waited_for(self) -> None:
        """For subclasses: somebody is about to wait, in this thread."""

    # ------------------------------------------------------------ the side that asked

    def done(self) -> bool:
        """Whether it has a value or an exception, or was cancelled."""
        return self._done

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return isinstance(self._error, asyncio.CancelledError)

    def cancel(self, msg: object = None) -> bool:
        """Give the call up; False where it is done. A rank that runs it already goes on to its end."""
        del msg  # asyncio's signature
        if self._done:
            return False
        abandon = self._abandon
        if abandon is None:
            return self.fail(asyncio.CancelledError())
        abandon()
        return True

    def result(self) -> R:
        """The value, or raises the exception; asyncio.InvalidStateError while there is neither."""
        if not self._done:
            raise asyncio.InvalidStateError(f"{self._label} is not done")
        self._unseen = False
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]

    def exception(self) -> BaseException | None:
        """The exception, or None; raises asyncio.InvalidStateError while it is not done, CancelledError."""
        if not self._done:
            raise asyncio.InvalidStateError(f"{self._label} is not done")
        self._unseen = False
        if isinstance(self._error, asyncio.CancelledError):
            raise self._error
        return self._error

    def get(self, timeout: float | None = None) -> R:
        """Wait for it in plain code: the value, or raises the exception; TimeoutError after `timeout` seconds.

        Neither a timeout nor Ctrl-C ends the call. Raises RuntimeError in an event loop, which would stand still.
        """
        if not self._done:
            if (loop := running_loop()) is not None and not stands_still(loop):
                raise RuntimeError(f"{self._label}: get() would block this event loop; use `await`")
            self._waited_for()
            done = threading.Event()
            self._then(lambda _: done.set())
            if not done.wait(timeout):
                raise TimeoutError(f"{self._label} has not answered within {timeout:g} s")
        return self.result()

    def add_done_callback(self, callback: Callable[[Future[R]], Any]) -> None:
        """Call `callback` with this future once it is done: in the event loop that this is called in, if any."""
        loop = running_loop()
        self._then(callback if loop is None else lambda _: in_loop(loop, callback, self))

    def _then(self, callback: Callable[[Future[R]], Any]) -> None:
        """Call `callback` in the thread where it is done, or now."""
        with _lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)

    # ------------------------------------------------------------ as an awaitable, and as a coroutine

    def __await__(self) -> Generator[Any, Any, R]:
        """See `await`."""
        return self._wait(None)

    __iter__ = __await__

    def _wait(self, cancelled: BaseException | None) -> Generator[Any, Any, R]:
        """Wait until it is done; `cancelled`: why the task that waits was cancelled before it began to."""
        if cancelled is not None:
            self.cancel()
        while not self._done:
            loop = asyncio.get_running_loop()
            self._waited_for()
            waiter = loop.create_future()
            self._then(functools.partial(_wake, loop, waiter))
            try:
                yield from waiter
            except asyncio.CancelledError as e:
                cancelled = e
                self._unseen = False  # it may have failed at the same time: whoever waited does not want to know
                self.cancel()  # and goes on to wait, if it takes time to clean up
        if cancelled is not None:
            raise cancelled
        return self.result()

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        return self._step("send", value)

    def throw(self, *error: Any) -> Any:
        """As a coroutine's."""
        if _task() not in self._steps and isinstance(error[0], asyncio.CancelledError):
            self._steps[_task()] = self._wait(error[0])
            return self._step("send", None)
        return self._step("throw", *error)

    def close(self) -> None:
        """As a coroutine's."""
        if (step := self._steps.pop(_task(), None)) is not None:
            step.close()

    def _step(self, how: str, *arguments: Any) -> Any:
        """One step of a task whose coroutine this future is; each such task has steps of its own."""
        task = _task()
        step = self._steps.get(task)
        if step is None:
            step = self._steps[task] = self.__await__()
        try:
            return getattr(step, how)(*arguments)
        except BaseException:
            self._steps.pop(task, None)
            raise

    def __del__(self) -> None:
        if getattr(self, "_unseen", False) and not sys.is_finalizing():
            log.error("%s raised an exception that nobody retrieved", self._label, exc_info=self._error)

    def __repr__(self) -> str:
        ended = "cancelled" if self.cancelled() else "failed" if self._error else "done"
        return f"<Future {self._label} {ended if self._done else 'pending'}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self._label} is a call under way; await it, and hand on its value")


def _task() -> asyncio.Task[Any] | None:
    return asyncio.current_task() if running_loop() is not None else None


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None], _: Future[Any]) -> None:
    if loop is running_loop():
        _set(waiter)
    else:
        in_loop(loop, _set, waiter)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
