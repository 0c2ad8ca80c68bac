"""Rank logs on the host that writes them: opened for the rank, read for its last lines."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from forgectl.system.files import create, open_to_read


def open_log(path: Path) -> int:
    """Create the log at `path`, with private parent folders, and return a descriptor that appends to it.

    Raises FileExistsError if the log exists: each generation of a rank has a log of its own.
    """
    _make_private(path.parent)
    return create(path, append=True)


def _make_private(folder: Path) -> None:
    """`mkdir -p` with mode 0700 for every folder it makes (Path.mkdir gives parents the default mode)."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for name in reversed(missing):
        name.mkdir(mode=0o700, exist_ok=True)


def tail(path: Path, lines: int = 20, limit_bytes: int = 16384) -> list[str]:
    """The last lines of a log: at most `lines`, within its last `limit_bytes`; [] if the log is gone.

    Progress bars show their last state. Blank lines at the end and the holes of a trimmed log are left out.
    """
    try:
        fd = open_to_read(path)
    except OSError:
        return []
    try:
        start = max(0, os.fstat(fd).st_size - limit_bytes)
        data = os.pread(fd, limit_bytes, start)
    except OSError:
        return []
    finally:
        os.close(fd)
    begins_inside_a_line = start > 0 or data.startswith(b"\0")
    rows = data.replace(b"\0", b"").rstrip().split(b"\n")
    if begins_inside_a_line:  # what is left of a secret there would not be recognised
        rows = rows[1:] or _SPACE.findall(rows[0])
    texts = [_last_state(row).decode(errors="replace") for row in rows[-lines:]] if lines > 0 else []
    return texts if any(texts) else []


_SPACE = re.compile(rb"\s.*", re.DOTALL)
"""What follows the first blank of a line, and that blank."""


def _last_state(line: bytes) -> bytes:
    """The last text of a line that carriage returns rewrote."""
    return next((state for state in reversed(line.split(b"\r")) if state.strip()), b"")


def disk_is_full(path: Path) -> bool:
    """Whether nothing more can be written next to `path`."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(path)
        return disk.f_bavail == 0
    return False
