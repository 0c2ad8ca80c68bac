"""The entries of a synced workdir, their hashes, and where its links lead."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from forgectl.protocol.tree_sync import Listing
from forgectl.wire.envelope import ProtocolError

PIECE = 1 << 20
"""Bytes of a file that are held in memory at a time."""
MOST_ENTRIES = 1_000_000
DEEPEST = 200
"""Levels of nested folders: a descriptor is open for each while a tree is walked."""
BATCH_BYTES = 2 << 20
"""Bytes of one Listing, well below MAX_LINE."""
MOST_LINKS = 40
"""Symbolic links that one path may follow, as in the kernel."""

FOLDER, FILE, PROGRAM, LINK = "dfxl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a workdir, relative to it. `mark` is the hash of a file's content, or the target of a link.

    Names that are not UTF-8 contain surrogates, as from os.fsdecode.
    """

    path: str
    kind: str  # FOLDER, FILE, PROGRAM (a file that may be executed) or LINK
    size: int = 0
    mark: str = ""

    @property
    def is_file(self) -> bool:
        return self.kind in (FILE, PROGRAM)


def new_hash() -> hashlib.blake2b:
    """An empty hash for a file's content, or a whole listing."""
    return hashlib.blake2b(digest_size=16)


def hash_of(descriptor: int) -> tuple[str, int]:
    """The hash and the number of the bytes of an open file, from its current position to its end."""
    total, size = new_hash(), 0
    while data := os.read(descriptor, PIECE):
        total.update(data)
        size += len(data)
    return total.hexdigest(), size


def is_path(path: str) -> bool:
    """Whether it can be the path of an entry: relative, without `..`, and valid for a file system."""
    parts = path.split("/")
    return (
        "\0" not in path
        and len(parts) <= DEEPEST
        and not any(part in ("", ".", "..") for part in parts)
        and _is_encodable(path)
    )


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def leads_outside(path: str, links: Mapping[str, str]) -> bool:
    """Whether the link at `path` leads out of the tree, directly or through other links; `links` has all of the tree.

    It compares names only, as the tree may not exist. Links in a circle lead nowhere, hence not outside.
    """
    todo = path.split("/")[::-1]
    done: list[str] = []
    followed = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return True
            done.pop()
            continue
        done.append(part)
        if (target := links.get("/".join(done))) is not None:
            if target.startswith("/"):
                return True
            if (followed := followed + 1) > MOST_LINKS:
                return False
            done.pop()
            todo += target.split("/")[::-1]
    return False


def listings(entries: Iterable[Entry]) -> Iterator[Listing]:
    """Entries as messages, each short enough for a line."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        cost = 6 * (len(entry.path) + len(entry.mark)) + 64  # in JSON, if every character is escaped
        if batch and size + cost > BATCH_BYTES:
            yield _listing(batch, last=False)
            batch, size = [], 0
        batch.append(entry)
        size += cost
    yield _listing(batch, last=True)


def _listing(entries: list[Entry], last: bool) -> Listing:
    return Listing(
        paths=tuple(e.path for e in entries),
        kinds="".join(e.kind for e in entries),
        sizes=tuple(e.size for e in entries),
        marks=tuple(e.mark for e in entries),
        last=last,
    )


def listed(listing: Listing) -> Iterator[Entry]:
    """The entries of a message; raises ProtocolError."""
    columns = (listing.paths, listing.kinds, listing.sizes, listing.marks)
    if len({len(column) for column in columns}) != 1:
        raise ProtocolError("columns of unequal length in a listing")
    for path, kind, size, mark in zip(*columns, strict=True):
        yield Entry(path, kind, size, mark)


def digest_of(entries: Iterable[Entry]) -> str:
    """The hash of a whole listing."""
    total = new_hash()
    for e in entries:
        total.update(f"{e.kind}{e.size}\0{e.mark}\0{e.path}\0".encode(errors="surrogatepass"))
    return total.hexdigest()


def check_entries(entries: Iterable[Entry]) -> None:
    """Raise ProtocolError unless the entries are a tree without ways out: the host creates each path."""
    folders, seen = {""}, set()
    links: dict[str, str] = {}
    for entry in entries:
        if not is_path(entry.path):
            raise ProtocolError(f"{entry.path[:200]!r} is not a path in a workdir")
        if entry.path in seen or entry.path.rpartition("/")[0] not in folders:
            raise ProtocolError(f"{entry.path[:200]!r} is listed twice, or before its folder")
        seen.add(entry.path)
        if entry.kind == FOLDER:
            folders.add(entry.path)
        elif entry.kind == LINK:
            if not entry.mark or "\0" in entry.mark or not _is_encodable(entry.mark):
                raise ProtocolError(f"the link {entry.path[:200]!r} leads to no path")
            links[entry.path] = entry.mark
        elif not entry.is_file or entry.size < 0 or not _is_hash(entry.mark):
            raise ProtocolError(f"{entry.path[:200]!r} is not a file, folder or link")
    for path in links:
        if leads_outside(path, links):
            raise ProtocolError(f"the link {path[:200]!r} leads out of the workdir")


def _is_hash(mark: str) -> bool:
    return len(mark) == 32 and set(mark) <= set("0123456789abcdef")
