"""The journal of a run: every record as one line. A new controller restores the state from it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from forgectl.controller.records import MONOTONIC, Record, from_line, to_line
from forgectl.controller.run_dir import keep_copy, seal, unseal
from forgectl.system.files import open_to_append, open_to_read, write_whole


class Journal:
    """Appends records. A full disk loses lines, not the run: while the controller lives, its state in memory counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_to_append(path)
        self.lost = 0

    def append(self, time: float, record: Record, monotonic: float | None = None) -> None:
        """Write one record; remove a line that did not fit completely. `time` is unix time."""
        line = _line(time, record, monotonic)
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


class Follower:
    """Reads a journal that may still grow, or be put in place of a damaged one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file = (0, 0)

    def more(self) -> tuple[list[tuple[float, float | None, Record]], bool]:
        """The new records, with unix time and monotonic time; and whether they are all, from a file put in its place.

        Unreadable lines are left out.
        """
        try:
            fd = open_to_read(self._path)
        except OSError:
            return [], False
        with open(fd, "rb") as file:
            found = os.fstat(file.fileno())
            again = self._offset > 0 and self._file != (found.st_dev, found.st_ino)
            self._file = found.st_dev, found.st_ino
            file.seek(0 if again else self._offset)
            whole, end, _ = file.read().rpartition(b"\n")  # a line may be half written
            self._offset = (0 if again else self._offset) + len(whole) + len(end)
        records = []
        for line in whole.split(b"\n"):
            with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
                data = json.loads(unseal(line))
                records.append((*_timed(data), from_line(data)[1]))
        return records, again


def _timed(data: Any) -> tuple[float, float | None]:
    monotonic = data.get(MONOTONIC)
    return float(data["time"]), None if monotonic is None else float(monotonic)


def repair(path: Path, records: list[tuple[float, Record]]) -> None:
    """Keep a damaged journal under another name, and write the records that could be read in its place."""
    keep_copy(path)
    with contextlib.suppress(OSError):  # a full disk: the state in memory counts
        write_whole(path, b"".join(_line(time, record) for time, record in records))


def _line(time: float, record: Record, monotonic: float | None = None) -> bytes:
    line = to_line(time, record)
    if monotonic is not None:
        line[MONOTONIC] = round(monotonic, 6)
    return seal(json.dumps(line, separators=(",", ":")).encode()) + b"\n"
