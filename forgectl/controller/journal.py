"""The journal of a run: every record as one line. A new controller restores the state from it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from forgectl.controller.records import Record, from_line, to_line
from forgectl.controller.run_dir import keep_copy, seal, unseal
from forgectl.system.files import open_to_append, write_whole


class Journal:
    """Appends records. A full disk loses lines, not the run: while the controller lives, its state in memory counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_to_append(path)
        self.lost = 0

    def append(self, time: float, record: Record) -> None:
        """Write one record; remove a line that did not fit completely. `time` is unix time."""
        line = _line(time, record)
        before = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) == len(line):
                return
        except OSError:
            pass
        self.lost += 1
        os.ftruncate(self._fd, before)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read(path: Path) -> tuple[list[tuple[float, Record]], bool]:
    """The records of a journal, with their unix times, and whether it was whole. Unreadable lines are left out.

    A run without a journal counts as whole: its controller never wrote. An empty journal has lost its records.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], True
    except OSError:
        return [], False
    records = []
    whole = data.endswith(b"\n")
    for line in data.split(b"\n")[:-1]:
        try:
            records.append(from_line(json.loads(unseal(line))))
        except (KeyError, TypeError, ValueError, RecursionError):
            whole = False
    return records, whole


def repair(path: Path, records: list[tuple[float, Record]]) -> None:
    """Keep a damaged journal under another name, and write the records that could be read in its place."""
    keep_copy(path)
    with contextlib.suppress(OSError):  # a full disk: the state in memory counts
        write_whole(path, b"".join(_line(time, record) for time, record in records))


def _line(time: float, record: Record) -> bytes:
    return seal(json.dumps(to_line(time, record), separators=(",", ":")).encode()) + b"\n"
