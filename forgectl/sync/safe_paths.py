"""Paths of one tree, reached folder by folder through descriptors, so that no link ever leads out of it."""

from __future__ import annotations

import os
import stat

from forgectl.system.files import open_folder, open_to_read


class Folders:
    """The tree in the folder `name` of an open folder. Cheap for paths in the order of a walk.

    Paths are relative, their parts joined by "/", and hold no "..", which is the caller's to see to.
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
        """The folder that holds `path`, open until another is asked for, and the name in it; raises OSError."""
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
        """What is at `path`, not followed if it is a link; None if nothing is, or one of its folders is none."""
        try:
            folder, name = self.open_parent(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open_file(self, path: str) -> int:
        """A descriptor to read a file by; raises OSError, also where a link or a pipe has taken its place."""
        folder, name = self.open_parent(path)
        descriptor = open_to_read(name, folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(f"{path} is no file any more")
        return descriptor

    def target(self, path: str) -> str | None:
        """Where the link at `path` leads; None if no link is there."""
        info = self.state(path)
        if info is None or not stat.S_ISLNK(info.st_mode):
            return None
        folder, name = self.open_parent(path)
        return os.readlink(name, dir_fd=folder)

    def set_mode(self, path: str, mode: int) -> os.stat_result:
        """Change a file's permissions, and never those of what a link leads to; what it is then."""
        descriptor = self.open_file(path)
        try:
            os.fchmod(descriptor, mode)
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, path: str) -> None:
        """Make a folder, in the place of whatever else is there."""
        folder, name = self.open_parent(path)
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            self.clear(path)
            os.mkdir(name, 0o755, dir_fd=folder)

    def move_in(self, source: str, source_folder: int, path: str) -> os.stat_result:
        """Move a file or link from another folder to `path`, in the place of whatever is there; what it is then."""
        folder, name = self.open_parent(path)
        try:
            os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)
        except IsADirectoryError:
            self.clear(path)
            os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def clear(self, path: str) -> None:
        """Remove what is at `path` with all that it holds."""
        folder, name = self.open_parent(path)
        remove(name, folder)

    def discard(self, path: str) -> bool:
        """Remove a file or link, or a folder if it is empty; whether something was removed."""
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
            return False  # it holds what was never synced
        return True


def remove(name: str, folder: int) -> None:
    """Remove a file, or a folder with all that it holds, and nothing that a link leads to."""
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
