"""Shows on stderr what ranks print, while the script that launched them runs."""

from __future__ import annotations

import io
import os
import queue
import select
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from forgectl.log_output.log_stream import LogSource, LogStream
from forgectl.log_output.log_writer import LogWriter
from forgectl.log_output.terminal_text import wants_color
from forgectl.model.status import MeshStatus
from forgectl.system.loops import in_notebook

LOOK_SECONDS = 0.05
"""The pause after nothing new was found; looking again takes one system call per log."""
SLICE = 16 * 1024
"""Most bytes that are written in one go: the threads of the script wait for the interpreter's lock meanwhile."""
STALL_SECONDS = 5.0
"""Seconds without progress after which the end of the script no longer waits for the reader of its stderr."""


def wanted() -> bool:
    """Whether the user wants to see on this process's stderr what ranks print."""
    return os.environ.get("FORGECTL_LOGS") != "off"


class RankOutput:
    """Follows the logs of meshes in a thread of its own, which rests as long as it works: the script goes first.

    The script's stdout is for its own data, so the lines go to its stderr.
    """

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[MeshStatus | None] = queue.SimpleQueue()  # None: nothing more will be written
        self._steps = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="forgectl-output", daemon=True)
        self._thread.start()

    def take(self, now: MeshStatus) -> None:
        """Follow the logs of a mesh's present ranks from their beginning; each may be given many times."""
        self._news.put(now)

    def end(self) -> None:
        """Note that nothing more will be written."""
        self._news.put(None)

    def join(self) -> None:
        """Wait until all has been shown, as long as the reader of stderr takes any of it."""
        before = -1
        while self._thread.is_alive() and before != self._steps:
            before = self._steps
            self._thread.join(STALL_SECONDS)

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # nobody reads stderr any more: the lines stay in the logs
            notebook = in_notebook()
            terminal = notebook or (sys.stderr is not None and sys.stderr.isatty())
            color = not os.environ.get("NO_COLOR") if notebook else terminal and wants_color(sys.stderr)
            stream = LogStream(terminal=terminal, most=SLICE)
            self._show(stream, LogWriter(_Stderr(), terminal=terminal, color=color))

    def _show(self, stream: LogStream, writer: LogWriter) -> None:
        while not (self._ended and stream.done):
            self._obey(stream, None if stream.done else LOOK_SECONDS)
            began = time.thread_time()
            for chunk in stream.poll():
                writer.write(chunk)
                self._steps += 1
                self._obey(stream, time.thread_time() - began)
                began = time.thread_time()

    def _obey(self, stream: LogStream, wait: float | None) -> None:
        """Wait for news, at most `wait` seconds (None: as long as it takes; once all has ended, not at all)."""
        with suppress(queue.Empty):
            while not self._ended:
                news = self._news.get(timeout=wait)
                wait = 0.0
                if news is None:
                    self._ended = True
                    stream.end()
                else:
                    _follow(stream, news)


def _follow(stream: LogStream, mesh: MeshStatus) -> None:
    sources = [LogSource(f"{mesh.mesh}/{rank.rank}", Path(rank.log)) for rank in mesh.ranks if rank.log]
    for source in sources:
        stream.add(source)
    if mesh.ended:
        stream.end(sources)


class _Stderr:
    """What stderr is at each moment: a notebook or a test may replace it. Written past its buffer where it is a file.

    A thread that waits for a reader in the buffer's own `write` would keep the interpreter from ending.
    """

    def write(self, data: bytes) -> None:
        stream = sys.stderr
        if stream is None:
            return
        if not isinstance(getattr(stream, "buffer", None), io.BufferedWriter):
            stream.write(data.decode(errors="replace"))
            return
        fd, left = stream.fileno(), memoryview(data)
        while left:
            try:
                left = left[os.write(fd, left) :]
            except BlockingIOError:
                select.select([], [fd], [])

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()
