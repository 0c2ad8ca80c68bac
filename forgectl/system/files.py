"""Opens our own files: never through a symbolic link, and no child inherits them; writes files whole or not at all.

All functions raise OSError. `folder` is the descriptor of an open folder, where a relative `path` starts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_OURS = os.O_NOFOLLOW | os.O_CLOEXEC


def open_to_read(path: str | os.PathLike[str], folder: int | None = None) -> int:
    """A descriptor for reading. If the file turns out to be a pipe, nothing waits for its writer."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OURS, dir_fd=folder)


def open_to_append(path: str | os.PathLike[str]) -> int:
    """A descriptor that appends to a file (0600), which is created if missing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OURS, 0o600)


def open_to_write(path: str | os.PathLike[str]) -> int:
    """A descriptor that writes anywhere in a file (0600), which is created if missing and keeps its content."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | _OURS, 0o600)


def create(path: str | os.PathLike[str], folder: int | None = None, *, mode: int = 0o600, append: bool = False) -> int:
    """A descriptor for writing a new file; raises FileExistsError if anything has that name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | append * os.O_APPEND | _OURS, mode, dir_fd=folder)


def open_lock(path: str | os.PathLike[str], folder: int | None = None) -> int:
    """A descriptor of a file (0600) to lock, which is created if missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _OURS, 0o600, dir_fd=folder)


def open_folder(path: str | os.PathLike[str], folder: int | None = None) -> int:
    """A descriptor of a folder."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _OURS, dir_fd=folder)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file (0600) whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(create(draft), "wb") as file:
            file.write(data)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for `path` that fits a socket address (107 bytes), whatever the length of its folder."""
    if len(os.fsencode(path)) <= 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
