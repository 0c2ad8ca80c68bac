"""Content that waits beside a tree until all of it has arrived: one file per content, named by its hash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container

from forgectl.sync.listing import FILE, PIECE, PROGRAM, Entry, hash_of, new_hash
from forgectl.sync.safe_paths import remove
from forgectl.system.files import create, open_to_read

MODES = {FILE: 0o644, PROGRAM: 0o755}
"""Permissions of synced files; the folder around all trees is closed to other users."""
_DRAFT = "draft"


class Staging:
    """An open folder of content. What an interrupted sync has left there is not sent again."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._kept = set(os.listdir(folder))
        self._kept.discard(_DRAFT)
        self._writing: int | None = None
        self._hash = new_hash()
        self._size = 0

    def has(self, entry: Entry) -> bool:
        """Whether the complete content of a file is here."""
        if entry.mark not in self._kept:
            return False
        descriptor = open_to_read(entry.mark, self._folder)
        try:
            return hash_of(descriptor) == (entry.mark, entry.size)
        finally:
            os.close(descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Append to the current file, or begin one; raises OSError."""
        if self._writing is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_DRAFT, dir_fd=self._folder)
            self._writing = create(_DRAFT, self._folder, mode=0o644)
            self._hash, self._size = new_hash(), 0
        self._hash.update(data)
        self._size += len(data)
        left = memoryview(data)
        while left:
            left = left[os.write(self._writing, left) :]

    def finish(self) -> tuple[str, int]:
        """Finish and keep the current file; returns its hash and size."""
        assert self._writing is not None
        os.close(self._writing)
        self._writing = None
        mark = self._hash.hexdigest()
        os.rename(_DRAFT, mark, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._kept.add(mark)
        return mark, self._size

    def copy(self, descriptor: int) -> str:
        """Keep a copy of an open file; returns its hash."""
        self._fill(descriptor)
        return self.finish()[0]

    def _fill(self, descriptor: int) -> None:
        self.write(b"")
        while data := os.read(descriptor, PIECE):
            self.write(data)

    def take(self, entry: Entry, *, last: bool) -> tuple[str, int]:
        """The name and folder of a file with this content, to be moved away; `last`: no other entry needs it."""
        name = entry.mark
        if not last:
            name = self._copied(name)
        os.chmod(name, MODES[entry.kind], dir_fd=self._folder)
        return name, self._folder

    def _copied(self, name: str) -> str:
        """Make a copy; returns its name."""
        descriptor = open_to_read(name, self._folder)
        try:
            self._fill(descriptor)
        finally:
            os.close(descriptor)
        assert self._writing is not None
        os.close(self._writing)
        self._writing = None
        return _DRAFT

    def link(self, target: str) -> tuple[str, int]:
        """Make a link; returns its name and folder, to be moved away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_DRAFT, dir_fd=self._folder)
        os.symlink(target, _DRAFT, dir_fd=self._folder)
        return _DRAFT, self._folder

    def clear(self, but: Container[str] = ()) -> None:
        """Remove all that is left, except content with the hashes in `but`."""
        self.drop()
        for name in os.listdir(self._folder):  # noqa: PTH208 (a descriptor)
            if name not in but:
                remove(name, self._folder)
                self._kept.discard(name)

    def drop(self) -> None:
        """Drop the current file, if there is one."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None
