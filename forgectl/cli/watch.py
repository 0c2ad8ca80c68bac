"""A run as a foreground command sees it: its states, its signals (Ctrl-C) and its log lines, in one loop."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.errors import InternalError
from forgectl.model.status import RunStatus
from forgectl.protocol.control import Attach, FollowLogs, Restart, Shutdown, StatusReport
from forgectl.wire.envelope import ProtocolError
from forgectl.wire.unix_sockets import Connection

LOG_SECONDS = 0.05


class Signals:
    """Notes Ctrl-C and similar signals instead of raising them, from the first step of a launch to its last."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.wakeup, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen.append(number)

    @contextmanager
    def noted(self) -> Iterator[Signals]:
        """A context in which signals are only noted."""
        before = {n: signal.signal(n, self._note) for n in self.NUMBERS if signal.getsignal(n) != signal.SIG_IGN}
        old = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)

    def drain(self) -> None:
        """Empty the wakeup pipe."""
        try:
            os.read(self.wakeup, 4096)
        except BlockingIOError:
            pass


def name_of(number: int) -> str:
    """The name by which users know a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class RunWatch:
    """Follows one run until it has ended, across the death of its controller.

    It turns `signals` into shutdowns; without them, Ctrl-C raises KeyboardInterrupt as usual. `logs`: have these logs
    fetched from ssh hosts meanwhile.
    """

    def __init__(
        self,
        run: RunDir,
        signals: Signals | None = None,
        *,
        owner: bool = False,
        logs: FollowLogs | None = None,
        grace: float = 10.0,
    ) -> None:
        self.run = run
        self.status: RunStatus | None = None  # the last reported one
        self._signals = signals
        self._answered = 0
        self._owner = owner
        self._logs = logs
        self.grace = grace  # seconds that the first signal leaves to the ranks
        self._line: Connection | None = None
        self._shutdown: Shutdown | None = None
        self._request: Restart | None = None
        self._seen_end = False

    @property
    def ended(self) -> bool:
        """Whether the last state is the final one."""
        return self._seen_end

    @property
    def stopping(self) -> bool:
        """Whether this process has asked for an end."""
        return self._shutdown is not None

    @property
    def hurried(self) -> bool:
        """Whether a second signal has come."""
        return self._answered > 1

    @property
    def signals(self) -> tuple[int, ...]:
        """The signals that were answered, in their order."""
        return tuple(self._signals.seen[: self._answered]) if self._signals else ()

    @property
    def exit_code(self) -> int:
        """The exit code with which this process asked for the run's end; 0 if it did not."""
        return self._shutdown.exit_code or 0 if self._shutdown else 0

    def stop(
        self, by: str, exit_code: int = 0, *, meshes: tuple[str, ...] | None = None, grace: float | None = None
    ) -> None:
        """Ask for the run's end, or that of some `meshes`, and ask every new controller again. `grace` is in seconds.

        Raises as `client.connect`.
        """
        self._shutdown = Shutdown(meshes, self.grace if grace is None else grace, by, exit_code)
        if self._line is None:
            self._connect()
        else:
            self._send(self._line, self._shutdown)

    def end(self, by: str, exit_code: int) -> None:
        """Ask for the run's end, and return when `status` is the final one."""
        self.stop(by, exit_code)
        for _ in self.steps():
            pass

    def restart(self, request: Restart) -> None:
        """Ask for new generations, and ask every new controller again; it replaces an earlier request."""
        self._request = request
        if self._line is not None:
            self._send(self._line, request)

    def steps(self, deadline: Callable[[], float | None] = lambda: None) -> Iterator[RunStatus | None]:
        """The run's states as they change; None when nothing changed for a moment, or the deadline has passed."""
        while not self._seen_end:
            self._obey_signals()
            line = self._line or self._connect()
            if line is None:
                break
            yield self._next(line, deadline())
        if not self._seen_end:
            final = self.run.read_final()
            if final is None:
                raise InternalError(f"run {self.run.run} ended without a trace", hint=f"see {self.run.path}")
            self.status, self._seen_end = final, True
            yield final

    def _connect(self) -> Connection | None:
        self._line = client.connect(self.run)
        if self._line is not None:
            self._send(self._line, Attach(self._owner))
            if self._logs is not None:
                self._send(self._line, self._logs)
            if self._request is not None:
                self._send(self._line, self._request)
            if self._shutdown is not None:
                self._send(self._line, self._shutdown)
        return self._line

    def _next(self, line: Connection, deadline: float | None) -> RunStatus | None:
        if not line.pending:
            wait = LOG_SECONDS if deadline is None else max(0.0, min(LOG_SECONDS, deadline - time.monotonic()))
            wakeup = [self._signals.wakeup] if self._signals else []
            ready, _, _ = select.select([line.socket.fileno(), *wakeup], [], [], wait)
            if line.socket.fileno() not in ready:
                return None
        try:
            report = line.receive(client.ANSWER_SECONDS)
        except TimeoutError:
            return None  # half a message: the controller is stopped or starved
        except ProtocolError as e:
            hint = f"see {self.run.path / 'controller.log'}"
            raise InternalError(f"the controller of run {self.run.run} broke the protocol: {e}", hint=hint) from None
        if not isinstance(report, StatusReport):
            self._line = None  # the controller died: the next step starts another
            line.close()
            return None
        self.status, self._seen_end = report.run, report.ended
        return report.run

    def _obey_signals(self) -> None:
        if self._signals is None:
            return
        self._signals.drain()
        while self._answered < len(self._signals.seen):
            number = self._signals.seen[self._answered]
            self._answered += 1
            self.stop(name_of(number), 128 + number, grace=self.grace if self._answered == 1 else 0.0)

    @staticmethod
    def _send(line: Connection, message: Any) -> None:
        with suppress(ConnectionError):  # the controller died: the next read will show it
            line.send(message)
