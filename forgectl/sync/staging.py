"""Content that waits beside a tree until all of it is there: one file for each, named by its hash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container

from forgectl.sync.listing import FILE, PIECE, PROGRAM, Entry, hash_of, new_hash
from forgectl.sync.safe_paths import remove
from forgectl.system.files import create, open_to_read

MODES = {FILE: 0o644, PROGRAM: 0o755}
"""Permissions of what is synced; the folder around all trees is its owner's alone."""
_DRAFT = "draft"


class Staging:
    """An open folder of content. What a sync that was cut has left there is not sent again."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._kept = set(os.listdir(folder))
        self._kept.discard(_DRAFT)
        self._writing: int | None = None
        self._hash = new_hash()
        self._size = 0

    def has(self, entry: Entry) -> bool:
        """Whether the content of a file is here, whole."""
        if entry.mark not in self._kept:
            return False
        descriptor = open_to_read(entry.mark, self._folder)
        try:
            return hash_of(descriptor) == (entry.mark, entry.size)
        finally:
            os.close(descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Go on with the current file, or begin one; raises OSError."""
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
        """Keep the current file; its hash and size."""
        assert self._writing is not None
        os.close(self._writing)
        self._writing = None
        mark = self._hash.hexdigest()
        os.rename(_DRAFT, mark, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._kept.add(mark)
        return mark, self._size

    def copy(self, descriptor: int) -> str:
        """Keep what an open file holds; its hash."""
        self._fill(descriptor)
        return self.finish()[0]

    def _fill(self, descriptor: int) -> None:
        self.write(b"")
        while data := os.read(descriptor, PIECE):
            self.write(data)

    def take(self, entry: Entry, *, last: bool) -> tuple[str, int]:
        """The name and folder of a file of this content to be moved away; `last`: nobody else will ask for it."""
        name = entry.mark
        if not last:
            name = self._double(name)
        os.chmod(name, MODES[entry.kind], dir_fd=self._folder)
        return name, self._folder

    def _double(self, name: str) -> str:
        """The name of a copy."""
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
        """The name and folder of a new link, to be moved away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_DRAFT, dir_fd=self._folder)
        os.symlink(target, _DRAFT, dir_fd=self._folder)
        return _DRAFT, self._folder

    def clear(self, but: Container[str] = ()) -> None:
        """Remove all that is left, but for content of these hashes."""
        self.drop()
        for name in os.listdir(self._folder):  # noqa: PTH208 (a descriptor)
            if name not in but:
                remove(name, self._folder)
                self._kept.discard(name)

    def drop(self) -> None:
        """Forget the current file, if there is one."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None
