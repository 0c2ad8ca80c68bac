"""Lends the standard input of a foreground run to its one rank; a whole terminal, if this command has one.

The rank asks for it at a socket of the run. From a terminal it gets a new pseudo-terminal, so that it has colours, job
control and a debugger, and this process copies between both, and into the rank's log. Else it gets the descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgectl.controller.run_dir import RunDir
from forgectl.system.files import short_path
from forgectl.wire.unix_sockets import private_folder

AGAIN_SECONDS = 10.0
"""A Ctrl-C that comes so soon after another one is for the run; a single one is for the rank's program."""
UNANSWERED_SECONDS = 1.0
_KEPT = 1 << 20  # bytes of output that wait until the path of the log is known
_MODE = re.compile(rb"\x1b\[(?:\?([\d;]+)([hl])|([\d;:]*)m)")
_SHOWN_BY_DEFAULT = frozenset({b"7", b"25"})


class LentInput:
    """Serves the rank until it is closed. `terminal`: whether the rank gets one, or the plain descriptor 0."""

    def __init__(self, *, terminal: bool, restarts: bool) -> None:
        self.terminal = terminal
        self.stderr = _Stderr(self)
        self.raw = False
        self.interrupts = 0  # each is a Ctrl-C that went to the rank's program
        self._restarts = restarts
        self._listener = socket.socket(socket.AF_UNIX)
        self._master: int | None = None
        self._before: list[Any] | None = termios.tcgetattr(0) if terminal else None
        self._wakeup, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = False
        self._reads = terminal
        self._log: Path | None = None
        self._unlogged = b""
        self._last_interrupt = -AGAIN_SECONDS
        self._told = True
        self._modes: set[bytes] = set()  # private modes of the terminal that the rank changed
        self._colored = False
        self._at_start = True  # of a line
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def open(self, run: RunDir) -> None:
        """Listen in the run's folder of sockets, before any rank can ask."""
        path = private_folder(run.sockets) / "input"
        with short_path(path) as name:
            self._listener.bind(name)
        self._listener.listen()
        self._thread.start()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """A context in which changes of the window's size, and of who has the terminal, are followed."""
        if not self.terminal:
            yield
            return
        followed = {signal.SIGWINCH: self._resize, signal.SIGCONT: self._poke}
        before = {number: signal.signal(number, handler) for number, handler in followed.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def write_log(self, path: Path) -> None:
        """The rank's log is at `path`."""
        self._log = path

    def unanswered(self) -> bool:
        """Whether the program goes on though it got a Ctrl-C; true once for each."""
        due = not self._told and time.monotonic() - self._last_interrupt > UNANSWERED_SECONDS
        if due:
            self._told = True
        return due and self._master is not None

    def close(self) -> None:
        """Show what is left of the rank's output, and give the terminal back as it was."""
        if self._closing:
            return
        self._closing = True
        if self._thread.ident is not None:
            self._poke()
            self._thread.join(5.0)
        self._let_go()
        self._listener.close()

    # ------------------------------------------------------------ the thread

    def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # it would stop us as we give the terminal back
        while not (self._closing and self._master is None):
            waiting: list[Any] = [self._listener, self._wakeup]
            if self._master is not None:
                self._enter()
                waiting.append(self._master)
            if self.raw and self._reads:
                waiting.append(0)
            ready, _, _ = select.select(waiting, [], [], 0.2)
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
            if self._listener in ready:
                self._lend()
            if 0 in ready:
                self._type()
            if self._master is not None and self._master in ready:
                self._show()
            elif self._closing and self._master is not None and not ready:
                self._hang_up()  # a process that left the run still has it

    def _lend(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            if not self.terminal:
                socket.send_fds(connection, [b"stdin"], [0])
                return
            if self._master is not None:
                self._hang_up()
            self._master, slave = os.openpty()
            assert self._before is not None
            termios.tcsetattr(slave, termios.TCSANOW, self._before)
            self._resize()
            socket.send_fds(connection, [b"terminal"], [slave])
            os.close(slave)

    def _show(self) -> None:
        """Copy output from the rank to the terminal and to its log."""
        assert self._master is not None
        try:
            data = os.read(self._master, 65536)
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self._hang_up()
            return
        _write(1, data)
        self._at_start = data.endswith(b"\n")
        for modes, how, color in _MODE.findall(data):
            for mode in modes.split(b";") if modes else ():
                usual = b"h" if mode in _SHOWN_BY_DEFAULT else b"l"
                (self._modes.discard if how == usual else self._modes.add)(mode)
            if not modes:
                self._colored = color not in (b"", b"0")
        self._unlogged += data.replace(b"\r\n", b"\n")
        self._write_log()

    def _write_log(self) -> None:
        if self._log is None:
            self._unlogged = self._unlogged[-_KEPT:]
            return
        with contextlib.suppress(OSError), open(self._log, "ab", buffering=0) as log:  # a full disk loses lines only
            log.write(self._unlogged)
        self._unlogged = b""

    def _type(self) -> None:
        """Copy what was typed to the rank; Ctrl-C and Ctrl-Z are for us, too, unless its program reads them itself."""
        data = os.read(0, 4096)
        if not data or self._master is None:
            self._reads = bool(data)
            return
        _, _, _, flags, _, _, special = termios.tcgetattr(self._master)
        if flags & termios.ISIG:
            if special[termios.VSUSP] in data:
                self._suspend()
                return
            if special[termios.VINTR] in data and flags & termios.ICANON:
                self._interrupt()
        with contextlib.suppress(OSError):
            _write(self._master, data)

    def _interrupt(self) -> None:
        now = time.monotonic()
        if self._restarts or now - self._last_interrupt < AGAIN_SECONDS:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            self.interrupts += 1
            self._told = False
        self._last_interrupt = now

    def _suspend(self) -> None:
        """Stop this command and what is beside it in a pipeline, as the terminal would; the rank goes on."""
        self._leave()
        os.kill(0, signal.SIGTSTP)

    # ------------------------------------------------------------ the terminal

    def _enter(self) -> None:
        """Have all keys, while this command is in the foreground."""
        if not self.raw and os.tcgetpgrp(0) == os.getpgrp():
            tty.setraw(0, termios.TCSADRAIN)
            self.raw = True
            self._resize()

    def _leave(self) -> None:
        if self.raw and self._before is not None:
            self.raw = False
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def _hang_up(self) -> None:
        """The rank has ended, and has left the terminal in any state."""
        if self._master is not None:
            os.close(self._master)
            self._master = None
        self._let_go()

    def _let_go(self) -> None:
        if not self.terminal:
            return
        rest = b"".join(
            b"\x1b[?%b%b" % (mode, b"h" if mode in _SHOWN_BY_DEFAULT else b"l") for mode in sorted(self._modes)
        )
        rest += b"\x1b[0m" * self._colored + b"\r\n" * (not self._at_start)
        self._modes, self._colored, self._at_start = set(), False, True
        with contextlib.suppress(OSError):
            _write(1, rest)
        self._write_log()
        self._leave()

    def _resize(self, *_: object) -> None:
        if (master := self._master) is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    def _poke(self, *_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"\0")


class _Stderr:
    """Standard error while the terminal may be lent: in its raw state a line break needs a carriage return."""

    def __init__(self, lent: LentInput) -> None:
        self._lent = lent

    def write(self, text: str) -> int:
        """Write the text."""
        if self._lent.raw and sys.stderr.isatty():
            text = text.replace("\n", "\r\n")
        return sys.stderr.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def lent_input(*, hidden: bool, restarts: bool) -> LentInput | None:
    """What this command can lend to the one rank of a run; None in the background, where a terminal is not ours.

    `hidden`: what the rank prints is not for the terminal, so it gets only its input.
    """
    if os.isatty(0):
        with contextlib.suppress(OSError):
            if os.tcgetpgrp(0) == os.getpgrp():
                return LentInput(terminal=os.isatty(1) and not hidden, restarts=restarts)
        return None
    return LentInput(terminal=False, restarts=restarts)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
