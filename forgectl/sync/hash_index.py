"""The hashes of a tree's files when they were last read, so that files without changes are not hashed again."""

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
"""Nanoseconds. File times have the resolution of a kernel tick (10 ms at most): a file may change twice within one."""
LONGEST = 1 << 30
"""Bytes of an index that are read."""

Stamp = tuple[int, int, int, int]
"""Size, mtime (ns), ctime (ns), inode: while they are unchanged, the content is."""


def stamp_of(info: os.stat_result) -> Stamp:
    """The stamp of a file: it differs once the file was touched."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


@dataclass
class Index:
    """Entries and stamps by path, in the order of a listing; `digest` is that listing's hash if all is as listed."""

    digest: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)

    def content(self, path: str, info: os.stat_result) -> str | None:
        """The hash of a file's content, or None if the file was touched since."""
        if self.stamps.get(path) != stamp_of(info):
            return None
        entry = self.entries.get(path)
        return entry.mark if entry is not None and entry.is_file else None

    def note(self, entry: Entry, info: os.stat_result | None = None) -> None:
        """Store an entry, and the stamp of its file as it is now."""
        self.entries[entry.path] = entry
        if info is None:
            self.stamps.pop(entry.path, None)
        else:
            self.stamps[entry.path] = stamp_of(info)


def load(name: str, folder: int | None = None) -> Index:
    """The index in a file (of an open folder); an empty one if there is no readable one."""
    try:
        descriptor = open_to_read(name, folder)
        with open(descriptor, "rb") as file:
            return _parse(json.loads(file.read(LONGEST)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return Index()


def save(index: Index, name: str, draft: str, folder: int | None = None) -> None:
    """Write the index whole or not at all, as `draft` first; raises OSError.

    A file that was touched within the current tick could be touched again with the same stamp, so that is not kept.
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
    """Raises ValueError, TypeError or KeyError if it is not an index of this version."""
    rows, digest = data["entries"], data["digest"]
    if data["version"] != VERSION or not isinstance(digest, str) or not isinstance(rows, list):
        raise ValueError("not an index of this version")
    index = Index(digest)
    for path, kind, size, mark, stamp in rows:
        if not (isinstance(mark, str) and isinstance(kind, str) and isinstance(size, int) and is_path(path)):
            raise ValueError("a damaged index")
        index.entries[path] = Entry(path, kind, size, mark)
        if stamp is not None:
            length, mtime, ctime, inode = map(int, stamp)
            index.stamps[path] = (length, mtime, ctime, inode)
    return index


def during_change(known: Index, entries: Iterable[Entry]) -> Index:
    """An index of all our entries that may be in a tree while it changes from `known` to `entries`."""
    marks = {path: entry.mark for path, entry in known.entries.items()}
    both = {**known.entries, **{e.path: e for e in entries}}
    return Index("", both, {path: s for path, s in known.stamps.items() if both[path].mark == marks.get(path)})
