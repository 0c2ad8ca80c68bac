"""A terminal, and the command in it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios

from tests.conftest import Forge, until


class Screen:
    """A terminal with a command in it, as the only job of its session."""

    def __init__(self, forge: Forge, *argv: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.shown = b""
        self._read = 0
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            cwd=forge.folder,
            env=forge.env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )

    def until(self, text: str) -> None:
        """Wait until more output has the text."""

        def look() -> bool:
            self._take()
            at = self.shown.find(text.encode(), self._read)
            self._read = at + len(text) if at >= 0 else self._read
            return at >= 0

        until(look, f"{text!r}, after {self.shown[self._read :]!r}")

    def read_until(self, text: str) -> str:
        """Wait for the text; what was printed before it."""
        began = self._read
        self.until(text)
        return self.shown[began : self._read - len(text)].decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self) -> int:
        """The exit code, once the command has ended; the terminal must be as it was."""

        def look() -> bool:
            self._take()
            return self.process.poll() is not None

        until(look, "the end of the command")
        self._take()
        assert termios.tcgetattr(self._slave) == self.before, "the terminal is left in another state"
        return self.process.returncode

    def _take(self) -> None:
        while select.select([self.master], [], [], 0.01)[0]:
            self.shown += os.read(self.master, 65536)

    def hang_up(self) -> None:
        """Close the terminal, which ends a shell in it."""
        os.close(self._slave)
        os.close(self.master)
        self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self.master)
