"""Paths of one tree, opened folder by folder through descriptors, so that no link leads out of it."""

from __future__ import annotations

import os
import stat

from forgectl.system.files import open_folder, open_to_read


class Folders:
    """The tree in the folder `name` of an open folder. It is fast for paths in the order of a walk.

    Paths are relative, with parts joined by "/". The caller must ensure that they contain no "..".
    """

    def __init__(self, name: str, parent: int) -> None:
        self._names: list[str] = []
        self._descriptors = [open_folder(name, parent)]

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def open_parent(self, path: str) -> tuple[int, str]:
        """A descriptor of the folder of `path`, open until the next call, and the name in it; raises OSError."""
        *parts, name = path.split("/")
        depth = 0
        while depth < min(len(parts), len(self._names)) and parts[depth] == self._names[depth]:
            depth += 1
        self._close_below(depth)
        for part in parts[depth:]:
            self._descriptors.append(open_folder(part, self._descriptors[-1]))
            self._names.append(part)
        return self._descriptors[-1], name

    def _close_below(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._descriptors.pop())

    def state(self, path: str) -> os.stat_result | None:
        """The status of `path`, without following a link; None if nothing is there, or a parent is not a folder."""
        try:
            folder, name = self.open_parent(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open_file(self, path: str) -> int:
        """A descriptor for reading a file; raises OSError, also if a link or a pipe is in its place."""
        folder, name = self.open_parent(path)
        descriptor = open_to_read(name, folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(f"{path} is not a file any more")
        return descriptor

    def target(self, path: str) -> str | None:
        """Where the link at `path` leads; None if no link is there."""
        info = self.state(path)
        if info is None or not stat.S_ISLNK(info.st_mode):
            return None
        folder, name = self.open_parent(path)
        return os.readlink(name, dir_fd=folder)

    def set_mode(self, path: str, mode: int) -> os.stat_result:
        """Change a file's permissions, never through a link; returns its new status."""
        descriptor = self.open_file(path)
        try:
            os.fchmod(descriptor, mode)
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, path: str) -> None:
        """Make a folder; it replaces anything else at that path."""
        folder, name = self.open_parent(path)
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            self.clear(path)
            os.mkdir(name, 0o755, dir_fd=folder)

    def move_in(self, source: str, source_folder: int, path: str) -> os.stat_result:
        """Move a file or link from another folder to `path`, replacing what is there; returns its status."""
        folder, name = self.open_parent(path)
        try:
            os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)
        except IsADirectoryError:
            self.clear(path)
            os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def clear(self, path: str) -> None:
        """Remove what is at `path`, with all its content."""
        folder, name = self.open_parent(path)
        remove(name, folder)

    def discard(self, path: str) -> bool:
        """Remove a file or link, or a folder if it is empty; returns whether something was removed."""
        info = self.state(path)
        if info is None:
            return False
        folder, name = self.open_parent(path)
        try:
            if stat.S_ISDIR(info.st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        except OSError:
            if not stat.S_ISDIR(info.st_mode):
                raise
            return False  # it contains files that were never synced
        return True


def remove(name: str, folder: int) -> None:
    """Remove a file, or a folder with all its content; never follows a link."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=folder)
        return
    inner = open_folder(name, folder)
    try:
        for child in os.listdir(inner):  # noqa: PTH208 (a descriptor)
            remove(child, inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
