"""Which content the files of a tree had when they were last seen, so that those untouched since need no hashing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from forgectl.sync.listing import Entry, is_path
from forgectl.system.files import open_to_read

VERSION = 1
TICK_NS = 20_000_000
"""File times are no finer than a tick of the kernel's clock (10 ms at most): a file may change twice within one."""
LONGEST = 1 << 30

Stamp = tuple[int, int, int, int]
"""Size, times of change of content and of inode (ns), inode: while they stay, so does the content."""


def stamp_of(info: os.stat_result) -> Stamp:
    """What tells whether a file was touched."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


@dataclass
class Index:
    """Entries with the stamps of the files, in the order of the listing whose hash is `digest`, if all is as listed."""

    digest: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)

    def content(self, path: str, info: os.stat_result) -> str | None:
        """The hash of a file's content, if nothing has touched the file since."""
        if self.stamps.get(path) != stamp_of(info):
            return None
        entry = self.entries.get(path)
        return entry.mark if entry is not None and entry.is_file else None

    def note(self, entry: Entry, info: os.stat_result | None = None) -> None:
        """Take an entry in, and its file as it is now."""
        self.entries[entry.path] = entry
        if info is None:
            self.stamps.pop(entry.path, None)
        else:
            self.stamps[entry.path] = stamp_of(info)


def load(name: str, folder: int | None = None) -> Index:
    """The index in a file (of an open folder); an empty one where there is none that can be read."""
    try:
        descriptor = open_to_read(name, folder)
        with open(descriptor, "rb") as file:
            return _parse(json.loads(file.read(LONGEST)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return Index()


def save(index: Index, name: str, draft: str, folder: int | None = None) -> None:
    """Write the index whole or not at all, as `draft` first; raises OSError.

    A file touched within this very tick could be touched again without showing it, so its stamp is not kept.
    """
    settled = time.time_ns() - TICK_NS
    rows = []
    for path, entry in index.entries.items():
        stamp = index.stamps.get(path)
        kept = stamp is not None and max(stamp[1], stamp[2]) < settled
        rows.append((path, entry.kind, entry.size, entry.mark, stamp if kept else None))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(json.dumps({"version": VERSION, "digest": index.digest, "entries": rows}))
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(draft, dir_fd=folder)
        raise


def _parse(data: dict[str, object]) -> Index:
    """Raises ValueError, TypeError or KeyError where it is no index of this version."""
    rows, digest = data["entries"], data["digest"]
    if data["version"] != VERSION or not isinstance(digest, str) or not isinstance(rows, list):
        raise ValueError("no index of this version")
    index = Index(digest)
    for path, kind, size, mark, stamp in rows:
        if not (isinstance(mark, str) and isinstance(kind, str) and isinstance(size, int) and is_path(path)):
            raise ValueError("a damaged index")
        index.entries[path] = Entry(path, kind, size, mark)
        if stamp is not None:
            size, changed, touched, inode = map(int, stamp)
            index.stamps[path] = (size, changed, touched, inode)
    return index


def during_change(known: Index, entries: Iterable[Entry]) -> Index:
    """An index of all that may be of ours in a tree while that becomes `entries`."""
    marks = {path: entry.mark for path, entry in known.entries.items()}
    both = {**known.entries, **{e.path: e for e in entries}}
    return Index("", both, {path: s for path, s in known.stamps.items() if both[path].mark == marks.get(path)})
