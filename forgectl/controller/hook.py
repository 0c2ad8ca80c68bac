"""Runs one command of `on:`, within its time, and ends all that it started. A process of its own: `boot.py hook …`.

It becomes the parent of orphans below it, so that it finds what the command left behind, however that detached itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from forgectl.frozen import dataclass
from forgectl.system.files import open_to_append
from forgectl.system.processes import REAL, become_subreaper, collect_children, signal_name
from forgectl.system.times import timestamp

MOST_OUTPUT = 32 * 1024
"""Bytes kept of the beginning of what a command prints, and as many of its end."""
MOST_LOG = 1 << 20
"""Bytes of the log after which a new one is begun; the one before stays beside it."""
CLEAN_SECONDS = 5.0
"""What it may take to end what a command left."""
_TICK = 0.05


@dataclass(frozen=True)
class HookCommand:
    """A command and what it may do; `title` names it in the log. Its standard input is that of this process."""

    title: str
    words: tuple[str, ...]
    folder: str
    timeout: float
    log: str


class Output:
    """What a command prints: the beginning and the end of it."""

    def __init__(self) -> None:
        self._head, self._tail = b"", b""
        self.size = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        room = MOST_OUTPUT - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-MOST_OUTPUT:]

    def __bytes__(self) -> bytes:
        left_out = self.size - len(self._head) - len(self._tail)
        gap = b"\n[%d bytes left out]\n" % left_out if left_out else b""
        text = self._head + gap + self._tail
        return text if text.endswith(b"\n") or not text else text + b"\n"


def main(arguments: list[str]) -> None:
    """`boot.py hook JSON`, the JSON of a HookCommand. Prints what went wrong; nothing if the command succeeded."""
    command = HookCommand(**json.loads(arguments[0]))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    become_subreaper()
    began = time.monotonic()
    output = Output()
    how = _run(command, output, stopped, began + command.timeout)
    left = _end_children()
    _log(command, output, how or "done", left, time.monotonic() - began)
    with contextlib.suppress(OSError):
        sys.stdout.write(how)
        sys.stdout.flush()


def _run(command: HookCommand, output: Output, stopped: Sequence[int], deadline: float) -> str:
    """Run the command; returns what went wrong, "" for nothing."""
    try:
        process = subprocess.Popen(
            command.words,
            cwd=command.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as e:
        return f"cannot run {command.words[0]}: {e.strerror or e}"
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    while (code := process.poll()) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return f"was ended after {command.timeout:g} s"
        if stopped:
            return "was ended with the run"
        if not _read(process.stdout.fileno(), output, min(left, _TICK)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(left, _TICK))  # its output is closed, or was handed to another process
    _read(process.stdout.fileno(), output, 0.0)
    if code < 0:
        return f"was killed by {signal_name(-code)}"
    return f"exited with code {code}" if code else ""


def _read(fd: int, output: Output, wait: float) -> bool:
    """Read what there is, after at most `wait` seconds; False at the end of the output."""
    if not select.select([fd], [], [], wait)[0]:
        return True
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):
            if not (data := os.read(fd, 1 << 16)):
                return False
            output.add(data)
    return True


def _end_children() -> int:
    """SIGKILL all that the command left, as its parent or the next one above; returns how many processes that were."""
    ended: set[int] = set()
    deadline = time.monotonic() + CLEAN_SECONDS
    while time.monotonic() < deadline:
        for _ in collect_children():
            pass
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            break
        for pid in _children():
            os.kill(pid, signal.SIGKILL)  # our own child: its pid cannot be another's before we collect it
            ended.add(pid)
        time.sleep(0.005)
    return len(ended)


def _children() -> list[int]:
    """The living children of this process."""
    own = os.getpid()
    return [pid for pid in REAL.pids() if (stat := REAL.stat(pid)) and stat.ppid == own and not stat.dead]


def _log(command: HookCommand, output: Output, how: str, left: int, took: float) -> None:
    path = Path(command.log)
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size > MOST_LOG:
            path.replace(path.with_name(f"{path.name}.old"))
        head = f"== {timestamp(time.time(), 'milliseconds')} {command.title}\n".encode()
        also = f"; {left} left processes were ended" if left else ""
        fd = open_to_append(path)
        try:
            os.write(fd, b"%s%s== %s after %.1f s%s\n" % (head, bytes(output), how.encode(), took, also.encode()))
        finally:
            os.close(fd)
