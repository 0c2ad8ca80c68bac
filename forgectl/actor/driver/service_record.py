"""What a driver that may be restarted writes down of its services, for the driver after it.

The replicas are meshes of the run, which the controller knows. Only the driver knows the keys by which other processes
call its services, and the sessions. Each service has a file, to which changes are appended: that survives a SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

LEAST_LINES = 4096
"""A file is written anew, with what still counts, when it has more lines than that and four times as many as needed."""


class ServiceRecord:
    """One service. `claim` names its launch, `key` is what other processes call it; nothing is written without `path`.

    Without room on the disk, a later driver does not know what could not be written.
    """

    def __init__(self, name: str, claim: str, key: str, path: Path | None) -> None:
        self.name = name
        self.claim = claim
        self.key = key
        self.sessions: dict[str, int | None] = {}
        self._path = path
        self._lines = 0
        self._file: int | None = None

    @classmethod
    def read(cls, path: Path) -> ServiceRecord | None:
        """The record in a file; None if it has no beginning. A driver that was killed may have left half a line."""
        record: ServiceRecord | None = None
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                first, second, *forgotten = json.loads(line)
                if record is None:
                    record = cls(path.stem, first, second, path)
                elif forgotten:
                    record.sessions.pop(first, None)
                else:
                    record.sessions[first] = second
        return record

    def write(self) -> None:
        """Write all of it."""
        if self._path is None:
            return
        self._close()
        lines: list[Any] = [[self.claim, self.key], *self.sessions.items()]
        with contextlib.suppress(OSError):
            new = self._path.with_suffix(".new")
            new.write_bytes(b"".join(map(_line, lines)))
            new.replace(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(lines)

    def note(self, session: str, index: int | None) -> None:
        """A session began, or has another replica now. From any thread, but one at a time."""
        if self._file is not None:
            self.sessions[session] = index
            self._append([session, index])

    def note_end(self, session: str) -> None:
        """A session is forgotten."""
        if self._file is not None:
            self.sessions.pop(session, None)
            self._append([session, None, None])

    def _append(self, line: list[Any]) -> None:
        assert self._file is not None
        self._lines += 1
        if self._lines > max(LEAST_LINES, 4 * len(self.sessions)):
            self.write()
            return
        with contextlib.suppress(OSError):
            os.write(self._file, _line(line))

    def delete(self) -> None:
        """The service was shut down."""
        self._close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class ServiceRecords:
    """Those of a run. `earlier` are of the services that earlier drivers had, by claim, until this driver has them."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: None if this driver is not restarted."""
        self._folder = folder
        self.earlier: dict[str, ServiceRecord] = {}
        if folder is not None:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = map(ServiceRecord.read, sorted(folder.glob("*.jsonl")))
            self.earlier = {record.claim: record for record in found if record is not None}

    def begin(self, name: str, claim: str) -> ServiceRecord:
        """That of a new service; its key is unlike that of every other service, also of those of the same name."""
        path = None if self._folder is None else self._folder / f"{name}.jsonl"
        return ServiceRecord(name, claim, f"{name} {os.urandom(6).hex()}", path)  # with a space: no mesh is called so


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
