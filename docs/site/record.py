"""Records a real launch in a real pseudo-terminal, as the animated SVG of the README: `python docs/site/record.py`.

A shell gets the commands typed as a person would type them; what it and forgectl print is read with its times. Each
line of the screen becomes a text that is visible from the moment when it appeared to the moment when it changed. Who
prefers no motion sees the last screen.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyte

TARGET = Path(__file__).parents[1] / "assets" / "launch.svg"
COMMANDS = ("forgectl init first && cd first", "forgectl launch forge.yaml", "forgectl status -a")
COLUMNS, LINES = 92, 22
PROMPT = "$ "
HOLD = 4.0
"""Seconds that the last screen stays before the recording begins anew."""
LONGEST = 60.0
"""Seconds after which a command that has not ended is given up."""

Span = tuple[str, str, bool, int]
"""Text, its colour, whether it is bold, and its first column."""
Row = tuple[Span, ...]


@dataclass(frozen=True)
class Shown:
    """A line of the screen, and from when to when it was there."""

    line: int
    row: Row
    begin: float
    end: float


# ---------------------------------------------------------------- the terminal


class Terminal:
    """A shell in a pseudo-terminal, its screen, and all that the screen showed."""

    def __init__(self, folder: Path, columns: int = COLUMNS, lines: int = LINES) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._since: dict[int, tuple[Row, float]] = {}
        self.shown: list[Shown] = []
        self._began = time.monotonic()
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            kept = {name: os.environ[name] for name in ("LANG", "USER") if name in os.environ}
            env = {"PATH": path, "PS1": PROMPT, "TERM": "xterm-256color", "HOME": str(folder), "LC_ALL": "C.UTF-8"}
            env |= {"FORGECTL_HOME": str(folder / ".forgectl"), "BASH_SILENCE_DEPRECATION_WARNING": "1"}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], kept | env)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Read until `condition` holds; raises TimeoutError."""
        deadline = time.monotonic() + LONGEST
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for {what}; the screen shows\n" + "\n".join(self.screen.display))
            self._read(0.02)

    def at_prompt(self) -> bool:
        """Whether the shell waits for a command."""
        cursor = self.screen.cursor
        return bool(cursor.x == len(PROMPT) and self.screen.display[cursor.y].rstrip() == PROMPT.rstrip())

    def type(self, command: str) -> None:
        """Type a command, and see it run to its end."""
        self.wait_for(self.at_prompt, "the prompt")
        for letter in command:
            self._send(letter)
            self._read_for(0.045)
        self._read_for(0.4)
        self._send("\r")
        self.wait_for(self.at_prompt, command)  # the cursor is behind the command until then
        self._read_for(0.8)

    def close(self) -> list[Shown]:
        """End the shell; all that was shown, in the order of lines and times."""
        end = self.now()
        for line, (row, begin) in self._since.items():
            self.shown.append(Shown(line, row, begin, end))
        os.close(self._fd)
        os.kill(self._pid, signal.SIGHUP)
        os.waitpid(self._pid, 0)
        return sorted((s for s in self.shown if s.row), key=lambda s: (s.line, s.begin))

    def _send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def _read_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._read(left)

    def _read(self, seconds: float) -> None:
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return
        self._stream.feed(os.read(self._fd, 65536))
        now = self.now()
        for line in range(self.screen.lines):
            row, (before, begin) = self._row(line), self._since.get(line, ((), 0.0))
            if row != before:
                if before:
                    self.shown.append(Shown(line, before, begin, now))
                self._since[line] = row, now

    def _row(self, line: int) -> Row:
        spans: list[Span] = []
        cells = self.screen.buffer[line]
        for column in range(self.screen.columns):
            cell = cells[column]
            style = (cell.fg, cell.bold)
            if spans and (spans[-1][1], spans[-1][2]) == style and cell.data != "\0":
                text, colour, bold, first = spans[-1]
                spans[-1] = text + cell.data, colour, bold, first
            else:
                spans.append((cell.data, *style, column))
        return tuple((t.rstrip(), c, b, first) for t, c, b, first in spans if t.strip())


# ---------------------------------------------------------------- the picture

CELL, LINE, PAD, BAR = 8.4, 19, 16, 34
"""Pixels: width of a column, height of a line, edge, and the window's bar."""
COLOURS = {
    "default": "#d0d7de", "black": "#6e7681", "red": "#ff7b72", "green": "#7ee787", "brown": "#e3b341",
    "blue": "#79c0ff", "magenta": "#d2a8ff", "cyan": "#76e3ea", "white": "#f0f6fc", "brightblack": "#8b949e",
}  # fmt: skip


def drawn(shown: Sequence[Shown], title: str, columns: int = COLUMNS) -> str:
    """The recording as an SVG, which repeats itself."""
    end = max(s.end for s in shown)
    length = end + HOLD
    lines = max(s.line for s in shown) + 1
    width, height = columns * CELL + 2 * PAD, lines * LINE + BAR + PAD
    times = sorted({(s.begin, s.end) for s in shown})
    font = "14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
    rules = [f"text{{font:{font};white-space:pre;fill:{COLOURS['default']}}}", "tspan.b{font-weight:700}"]
    rules += [f".{name}{{fill:{colour}}}" for name, colour in COLOURS.items() if name != "default"]
    for i, (begin, stop) in enumerate(times):
        last = stop >= end
        off = "" if last else f"{100 * stop / length:.2f}%{{visibility:hidden}}"
        frames = f"0%{{visibility:hidden}}{100 * begin / length:.2f}%{{visibility:visible}}{off}"
        rules.append(f"@keyframes k{i}{{{frames}}}")
        rules.append(f".k{i}{{{'' if last else 'visibility:hidden;'}animation:k{i} {length:.1f}s step-end infinite}}")
    rules.append("@media(prefers-reduced-motion:reduce){text{animation:none!important}}")
    number = {pair: i for i, pair in enumerate(times)}
    texts = [_text(s, f"k{number[s.begin, s.end]}") for s in shown]
    dots = "".join(
        f'<circle cx="{PAD + 6 + 18 * i}" cy="17" r="5.5" fill="{colour}"/>'
        for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n<style>\n'
        + "\n".join(rules)
        + f'\n</style>\n<rect width="{width:g}" height="{height}" rx="8" fill="#161b22"/>\n{dots}\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def _text(shown: Shown, animation: str) -> str:
    y = BAR + (shown.line + 0.75) * LINE
    spans = "".join(_span(text, colour, bold, first) for text, colour, bold, first in shown.row)
    return f'<text class="{animation}" y="{y:g}">{spans}</text>'


def _span(text: str, colour: str, bold: bool, first: int) -> str:
    kinds = ([colour] if colour in COLOURS and colour != "default" else []) + (["b"] if bold else [])
    known = f' class="{" ".join(kinds)}"' if kinds else ""
    # As wide as in a terminal, whatever font there is.
    return f'<tspan{known} x="{PAD + first * CELL:g}" textLength="{len(text) * CELL:g}">{escape(text)}</tspan>'


def record(commands: Sequence[str] = COMMANDS) -> str:
    """Run the commands in a folder of their own; the recording of it."""
    with tempfile.TemporaryDirectory(prefix="forgectl-recording-") as folder:
        terminal = Terminal(Path(folder))
        try:
            for command in commands:
                terminal.type(command)
        finally:
            shown = terminal.close()
    return drawn(shown, f"A terminal: {'; '.join(commands)}")


if __name__ == "__main__":
    TARGET.write_text(record())
