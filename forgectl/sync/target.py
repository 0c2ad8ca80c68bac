"""One synced tree of this host, and the files beside it: its lock, its index, and staged content."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from forgectl.sync import hash_index as indexes
from forgectl.sync.hash_index import Index
from forgectl.sync.listing import FOLDER, LINK, PROGRAM, Entry, hash_of
from forgectl.sync.safe_paths import Folders
from forgectl.sync.staging import MODES, Staging
from forgectl.system.files import open_folder, open_lock
from forgectl.wire.unix_sockets import private_folder


@contextlib.contextmanager
def hold(root: Path, key: str) -> Iterator[SyncTarget]:
    """The tree ROOT/work/KEY, locked for this block: other processes wait for their turn. Raises OSError.

    The names of the files beside it begin with a dot, which no key does.
    """
    path = private_folder(root / "work") / key
    with contextlib.ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        work = keep(open_folder(path.parent))
        lock = keep(open_lock(f".lock.{key}", work))
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in (key, f".staged.{key}"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=work)
        folders = stack.enter_context(Folders(key, work))
        staging = Staging(keep(open_folder(f".staged.{key}", work)))
        stack.callback(staging.drop)
        yield SyncTarget(path, work, folders, staging)


class SyncTarget:
    """One tree. First `examine`; then write the missing content to `staging`; then `settle`, which changes the tree."""

    def __init__(self, path: Path, work: int, folders: Folders, staging: Staging) -> None:
        self.path = path
        self.staging = staging
        self._work = work
        self._folders = folders
        self._index_name = f".index.{path.name}"
        self.index = indexes.load(self._index_name, work)
        self._present: dict[str, os.stat_result] = {}

    # ------------------------------------------------------------ comparison

    def examine(self, entries: Sequence[Entry]) -> list[int]:
        """The numbers of the files whose content this host does not have.

        It stages content that another file of the tree has, such as one that was renamed.
        """
        self.staging.clear(but={e.mark for e in entries})
        elsewhere = {e.mark: e.path for e in self.index.entries.values() if e.is_file}
        return [
            number
            for number, entry in enumerate(entries)
            if entry.is_file
            and not self._is_in_place(entry)
            and not self.staging.has(entry)
            and not self._stage_from(elsewhere.get(entry.mark), entry)
        ]

    def _is_in_place(self, entry: Entry) -> bool:
        """Whether a file already has its content. It is read only if its stamp shows that it was touched."""
        info = self._folders.state(entry.path)
        if info is None or not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
            return False
        if (self.index.content(entry.path, info) or self._hash(entry.path)) != entry.mark:
            return False
        self._present[entry.path] = info
        return True

    def _hash(self, path: str) -> str | None:
        try:
            descriptor = self._folders.open_file(path)
        except OSError:
            return None  # a file that cannot be read is replaced
        try:
            return hash_of(descriptor)[0]
        finally:
            os.close(descriptor)

    def _stage_from(self, path: str | None, entry: Entry) -> bool:
        """Stage a copy of the file at `path`, such as one that was renamed; returns whether it had the content."""
        if path is None:
            return False
        try:
            descriptor = self._folders.open_file(path)
        except OSError:
            return False
        try:
            return self.staging.copy(descriptor) == entry.mark
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ the change

    def settle(self, entries: Sequence[Entry], digest: str) -> int:
        """Make the tree as listed, from files in place and staged content; returns how many paths were deleted.

        If it is interrupted at any moment, the next sync still knows all entries of ours that may be in the tree.
        """
        before, after = self.index, Index(digest)
        gone = before.entries.keys() - {e.path for e in entries}
        missing = [e for e in entries if e.is_file and e.path not in self._present]
        if gone or missing:
            self._save(indexes.during_change(before, entries))
        deleted = sum(self._folders.discard(path) for path in sorted(gone, reverse=True))
        uses = Counter(e.mark for e in missing)
        for entry in entries:
            after.note(entry, self._put(entry, uses))
        if after != before:
            self._save(after)
        self.staging.clear()
        return deleted

    def _save(self, index: Index) -> None:
        indexes.save(index, self._index_name, f".draft.{self.path.name}", self._work)

    def _put(self, entry: Entry, uses: Counter[str]) -> os.stat_result | None:
        """Make one entry; returns the status if it is a file."""
        if entry.kind == FOLDER:
            info = self._folders.state(entry.path)
            if info is None or not stat.S_ISDIR(info.st_mode):
                self._folders.make_folder(entry.path)
            return None
        if entry.kind == LINK:
            if self._folders.target(entry.path) != entry.mark:
                self._folders.move_in(*self.staging.link(entry.mark), entry.path)
            return None
        if (info := self._present.get(entry.path)) is not None:
            if bool(info.st_mode & 0o100) == (entry.kind == PROGRAM):
                return info
            return self._folders.set_mode(entry.path, MODES[entry.kind])
        uses[entry.mark] -= 1
        return self._folders.move_in(*self.staging.take(entry, last=not uses[entry.mark]), entry.path)
