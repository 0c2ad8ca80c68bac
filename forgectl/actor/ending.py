"""The end of an actor's rank: at SIGTERM the user's cleanup and the atexit handlers run, whatever the rank is doing."""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import inspect
import json
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgectl.actor.deaths import died_of
from forgectl.errors import ForgeError, MeshStopped
from forgectl.names import STOP_FILE
from forgectl.protocol.control import BY_HANDLE
from forgectl.protocol.supervision import Stop
from forgectl.system.files import open_to_read
from forgectl.wire.codec import CodecError, from_json

CLEANUP = "__cleanup__"
MAIN_SECONDS = 0.1
"""How long the main thread may take to notice the end, before another thread runs the atexit handlers."""
CLEANUP_SECONDS = 1.0
"""The same where there is a cleanup. It belongs in the main thread: its event loop has the user's tasks and locks."""


class Ending:
    """Notices SIGTERM from now on. Create it in the main thread.

    A thread waits for the signal: Python's own handlers wait for the main thread, which may be in a collective or
    another long call. A handler that the user's code installs takes the place of ours.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.begun = asyncio.Event()
        self.subject: object = None  # the user's object, once it is constructed
        self._stop_file = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).with_name(STOP_FILE)
        self._taken = threading.Event()  # the main thread has noticed the end
        self._claim = threading.Lock()  # whoever has it cleans up
        self._wakeup, self._wakeup_in = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._wakeup_in, False)
        signal.signal(signal.SIGTERM, self._handle)
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._watch, name="forgectl-ending", daemon=True).start()

    async def wait(self) -> None:
        """Wait, in the main thread, until this rank has to end."""
        await self.begun.wait()
        self._taken.set()

    def finish(self) -> None:
        """Clean up and exit; in one thread, if several call it."""
        if not self._claim.acquire(blocking=False):
            threading.Event().wait()  # until the other one has ended this process
        order = self._order()
        self._clean_up(why_ended(order))
        _spare_torchs_finalizers()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Not sys.exit: it would wait for the thread of an endpoint that runs. Unasked, the end is a failure.
        os._exit(0 if order else 128 + signal.SIGTERM)

    # ------------------------------------------------------------ the signal

    def _handle(self, *_: object) -> None:
        os.write(self._wakeup_in, bytes([signal.SIGTERM]))  # again, as user code may have replaced the descriptor

    def _watch(self) -> None:
        while os.read(self._wakeup, 1)[0] != signal.SIGTERM or signal.getsignal(signal.SIGTERM) != self._handle:
            pass
        faulthandler.register(signal.SIGTERM, 2)  # from now on it logs where every thread is
        self.loop.call_soon_threadsafe(self.begun.set)
        if not self._taken.wait(CLEANUP_SECONDS if self._cleanup else MAIN_SECONDS):
            self.finish()

    def _forget(self) -> None:
        """In a forked child: SIGTERM ends it, as it does other programs."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if (wakeup := signal.set_wakeup_fd(-1)) != self._wakeup_in:
                signal.set_wakeup_fd(wakeup)

    # ------------------------------------------------------------ the cleanup

    @property
    def _cleanup(self) -> Callable[[Any, BaseException | None], Any] | None:
        return getattr(type(self.subject), CLEANUP, None)

    def _clean_up(self, why: BaseException | None) -> None:
        if (cleanup := self._cleanup) is None:
            return
        try:
            if inspect.isawaitable(cleaning := cleanup(self.subject, why)):
                in_main = threading.current_thread() is threading.main_thread()
                loop = self.loop if in_main else asyncio.new_event_loop()
                loop.run_until_complete(cleaning)
        except BaseException:
            logging.getLogger("forgectl").exception("%s.%s raised", type(self.subject).__qualname__, CLEANUP)

    def _order(self) -> Stop | None:
        """The order that its agent left; None if SIGTERM came from somebody else."""
        try:
            with open(open_to_read(self._stop_file), "rb") as file:
                return from_json(Stop, json.load(file))
        except (OSError, ValueError, CodecError):
            return None


def _spare_torchs_finalizers() -> None:
    """Skip those that unregister torch's operators one by one: 30 ms, for tables that end with the process."""
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        if (alive := finalizer.peek()) and getattr(alive[1], "__module__", None) == "torch.library":
            finalizer.atexit = False


def why_ended(order: Stop | None) -> ForgeError | None:
    """What a cleanup gets: None for an end that the code asked for by a handle."""
    if order is None:
        return MeshStopped(f"mesh {os.environ['FORGE_MESH']}: a rank got SIGTERM", by="SIGTERM")
    if (failed := order.failure) is not None:
        return died_of(failed, order.mesh, f"mesh {order.mesh}: {failed.message}")
    if order.by == BY_HANDLE:
        return None
    return MeshStopped(f"mesh {order.mesh}: stopped by {order.by}", by=order.by or "")
