"""The journal of a run: every record as one line, from which a new controller has the state again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from forgectl.controller.records import Record, from_line, to_line
from forgectl.controller.rundir import set_aside
from forgectl.protocol import ProtocolError


class Journal:
    """Appends records. A full disk loses lines, not the run: the state in memory is what counts while it lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path)
        self.lost = 0

    def append(self, time: float, record: Record) -> None:
        """Write one record; a line that did not fit whole is cut off again."""
        line = json.dumps(to_line(time, record), separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) == len(line):
                return
        except OSError:
            pass
        self.lost += 1
        os.ftruncate(self._fd, before)

    def close(self) -> None:
        """Nothing more will be written."""
        os.close(self._fd)


def read(path: Path) -> tuple[list[tuple[float, Record]], bool]:
    """The records of a journal and whether it was whole; what cannot be read is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], True
    records = []
    whole = data.endswith(b"\n") or not data
    for line in data.splitlines():
        try:
            records.append(from_line(json.loads(line)))
        except (ProtocolError, KeyError, TypeError, ValueError, RecursionError):
            whole = False
    return records, whole


def repair(path: Path, records: Iterator[tuple[float, Record]]) -> None:
    """Set a damaged journal aside and write what could be read of it anew."""
    set_aside(path)
    journal = Journal(path)
    for time, record in records:
        journal.append(time, record)
    journal.close()


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)
