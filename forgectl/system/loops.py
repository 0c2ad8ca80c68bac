"""Event loops, of which a process may have several in several threads, and one more for code that has none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_lock = threading.Lock()
_plain: asyncio.AbstractEventLoop | None = None
_still: set[asyncio.AbstractEventLoop] = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this code runs in, if any."""
    return asyncio._get_running_loop()  # meant for event loops; the public one raises, which takes ten times as long


def in_loop(loop: asyncio.AbstractEventLoop, do: Callable[..., Any], *arguments: Any) -> None:
    """Call it soon in that loop, from any thread; not at all if the loop is closed: nobody waits there any more."""
    try:
        loop.call_soon_threadsafe(do, *arguments)
    except RuntimeError:
        pass


def loop_of_calls() -> asyncio.AbstractEventLoop:
    """The loop that reads the answers of calls that are made here: the running one, if that will go on running.

    Plain code has none. A notebook's cell, or an actor's constructor, runs in one that stands still meanwhile.
    """
    loop = running_loop()
    return plain_loop() if loop is None or stands_still(loop) else loop


def plain_loop() -> asyncio.AbstractEventLoop:
    """A loop, in a thread of its own, for code without one."""
    global _plain  # noqa: PLW0603
    with _lock:
        if _plain is None:
            _plain = asyncio.new_event_loop()
            threading.Thread(target=_plain.run_forever, name="forgectl-answers", daemon=True).start()
        return _plain


def stands_still(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether nothing in that loop needs to go on meanwhile: it is a Jupyter kernel's, or in `standing_still`."""
    return loop in _still or in_notebook()


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    return "ipykernel.kernelapp" in sys.modules


@contextlib.contextmanager
def standing_still() -> Iterator[None]:
    """Plain code inside may block the running loop: its calls are answered in another one."""
    loop = asyncio.get_running_loop()
    _still.add(loop)
    try:
        yield
    finally:
        _still.discard(loop)


def _begin_anew() -> None:
    """In a forked child: its parent's threads, and locks that they may hold, are not its own."""
    global _lock, _plain
    _lock, _plain = threading.Lock(), None


os.register_at_fork(after_in_child=_begin_anew)
