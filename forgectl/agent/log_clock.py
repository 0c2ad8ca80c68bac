"""Notes when ranks write to their logs, beside each log: nothing stands between a rank and its log to do so.

A look takes one stat(2) for each log. It notes the size and the time of the last write, so a line that comes alone gets
its own time, and what comes in a flood that of the next look.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from forgectl.system.log_times import SAMPLE, append_samples

LOOK_SECONDS = 0.25


class LogClock:
    """Notes the times of some logs."""

    def __init__(self) -> None:
        self._noted: dict[Path, tuple[int, int]] = {}  # log → the last sample of it

    def add(self, log: Path) -> None:
        """Note the times of a log from now on."""
        self._noted[log] = 0, 0

    def note(self) -> None:
        """Note the size of each log that has grown. A full disk loses notes, nothing else."""
        for log, (size, when) in self._noted.items():
            with contextlib.suppress(OSError):
                now = log.lstat()
                if now.st_size > size:
                    self._noted[log] = now.st_size, max(when, now.st_mtime_ns)  # somebody may have set the clock back
                    append_samples(log, SAMPLE.pack(*self._noted[log]))
