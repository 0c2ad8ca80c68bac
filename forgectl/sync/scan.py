"""Scans a workdir once, for all hosts that it is synced to: what belongs to it, and the hash of every file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from forgectl.errors import ForgeError, NotFoundError
from forgectl.sync import hash_index as indexes
from forgectl.sync.gitignore import ALWAYS, Ignored
from forgectl.sync.hash_index import Index
from forgectl.sync.heaviest import heaviest
from forgectl.sync.listing import (
    DEEPEST,
    FILE,
    FOLDER,
    LINK,
    MOST_ENTRIES,
    PROGRAM,
    Entry,
    digest_of,
    hash_of,
    leads_outside,
    listings,
)
from forgectl.system.files import open_to_read
from forgectl.system.sizes import show_bytes
from forgectl.wire.envelope import encode

SHOWN = 20
"""Links that an error names; their targets make its lines long."""
LEAVE_OUT = "leave it out by a line in .forgeignore (same syntax as .gitignore)"


class WorkdirError(ForgeError):
    """The workdir cannot be synced as it is."""

    exit_code = 65


@dataclass(frozen=True)
class Tree:
    """A workdir as it was scanned. The object never changes, so threads may share it."""

    workdir: Path
    entries: tuple[Entry, ...]
    digest: str
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(e.size for e in self.entries)

    @functools.cached_property
    def listing(self) -> bytes:
        """The entries as messages, encoded once for all hosts."""
        return b"".join(map(encode, listings(self.entries)))


def scan(workdir: Path, limit: int, cache: Path | None = None) -> Tree:
    """Scan what a sync copies of a workdir. `cache` is a folder of hashes, so that unchanged files are not read again.

    Raises NotFoundError if something cannot be read, and WorkdirError if it is too large (`limit` in bytes) or a link
    leads out of it; each names all offending paths.
    """
    top = Path(os.path.realpath(workdir))
    walk = _Walk(top)
    walk.run()
    _check_size(workdir, walk.entries, limit)  # first: a folder that is too large may be the wrong one
    _check_links(workdir, walk.entries)
    entries = _hashed(top, walk, cache)
    _check_readable(workdir, walk.unreadable)
    return Tree(top, entries, digest_of(entries), tuple(walk.notices))


def shown(path: str) -> str:
    """A path that is safe to print: quoted if it contains anything that a terminal should not receive."""
    return path if path.isprintable() and path == path.strip() else repr(path)


# ---------------------------------------------------------------- the walk


class _Walk:
    """Collects what is not ignored, each folder before its content; files have no hash yet."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._prefix, self._ignored = _above(top)
        self.entries: list[Entry] = []
        self.found: dict[str, os.stat_result] = {}
        self.unreadable: list[tuple[str, OSError]] = []
        self.notices: list[str] = []

    def run(self) -> None:
        """Walk it all; raises NotFoundError if it is not a folder, WorkdirError for too many entries or levels."""
        if not self._top.is_dir():
            raise NotFoundError(f"the workdir {self._top} is not a folder", hint="set workdir: in the spec")
        self._folder("", self._ignored)

    def _folder(self, path: str, ignored: Ignored) -> None:
        inner = f"{path}/" if path else ""
        try:
            with os.scandir(self._top / path) as children:
                names = {child.name: child for child in children}
        except FileNotFoundError:
            return  # it was removed meanwhile
        except OSError as e:
            self.unreadable.append((path or ".", e))
            return
        if inner.count("/") >= DEEPEST:
            raise self._too_much(path)
        ignored = ignored.below(
            os.fsencode(self._prefix + inner),
            self._rules(inner + ".gitignore") if ".gitignore" in names else None,
            self._rules(inner + ".forgeignore") if ".forgeignore" in names else None,
        )
        for name in sorted(names.keys() - ALWAYS):
            is_folder = names[name].is_dir(follow_symlinks=False)
            if not ignored.ignores(os.fsencode(self._prefix + inner + name), is_folder):
                self._child(inner + name, names[name], ignored)

    def _rules(self, path: str) -> bytes | None:
        try:
            return _ignore_file(self._top / path)
        except OSError as e:
            self.unreadable.append((path, e))
            return None

    def _child(self, path: str, child: os.DirEntry[str], ignored: Ignored) -> None:
        if len(self.entries) >= MOST_ENTRIES:
            raise self._too_much(path)
        try:
            info = child.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                self.entries.append(Entry(path, FOLDER))
                self._folder(path, ignored)
            elif stat.S_ISREG(info.st_mode):
                self.entries.append(Entry(path, PROGRAM if info.st_mode & 0o100 else FILE, info.st_size))
                self.found[path] = info
            elif stat.S_ISLNK(info.st_mode):
                self.entries.append(Entry(path, LINK, mark=os.readlink(child.path)))  # noqa: PTH115 (Path changes it)
            else:
                self.notices.append(f"{shown(path)} is not synced: it is {_kind(info.st_mode)}")
        except FileNotFoundError:
            pass  # it was removed meanwhile
        except OSError as e:
            self.unreadable.append((path, e))

    def _too_much(self, path: str) -> WorkdirError:
        return WorkdirError(
            f"the workdir {self._top} has too much to be synced, at {shown(path)[:200]}: more than {MOST_ENTRIES} "
            f"files, or {DEEPEST} levels of folders",
            hint=LEAVE_OUT,
        )


def _above(top: Path) -> tuple[str, Ignored]:
    """The ignore files of the git repository around a workdir, and the workdir's path in it, with a slash at its end.

    They do not apply if they leave out the workdir itself: then they say nothing about its content.
    """
    repository = next((p for p in (top, *top.parents) if os.path.lexists(p / ".git")), top)
    ignored = Ignored()
    inner = ""
    for part in top.relative_to(repository).parts:
        folder = repository / inner
        with contextlib.suppress(OSError):
            files = (_ignore_file(folder / name) for name in (".gitignore", ".forgeignore"))
            ignored = ignored.below(os.fsencode(inner), *files)
        inner += part
        if ignored.ignores(os.fsencode(inner), True):
            return "", Ignored()
        inner += "/"
    return inner, ignored


def _ignore_file(path: Path) -> bytes | None:
    """The content of an ignore file; None if there is none, or only a link, which git does not follow either."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"


# ---------------------------------------------------------------- content


def _hashed(top: Path, walk: _Walk, cache: Path | None) -> tuple[Entry, ...]:
    """The entries with the hashes of files; unreadable files are added to `walk.unreadable`."""
    known = Index()
    name = ""
    if cache is not None:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = str(cache / f"{hashlib.sha256(os.fsencode(top)).hexdigest()[:32]}.json")
        known = indexes.load(name)
    now = Index()
    for entry in walk.entries:
        info = walk.found.get(entry.path)
        if info is None:
            now.note(entry)
            continue
        try:
            mark, size = known.content(entry.path, info), entry.size
            if mark is None:
                mark, size = _hash(top / entry.path)
            now.note(replace(entry, mark=mark, size=size), info)
        except FileNotFoundError:
            pass  # it was removed meanwhile
        except OSError as e:
            walk.unreadable.append((entry.path, e))
    if name and now != known:
        with contextlib.suppress(OSError):  # it only saves time
            indexes.save(now, name, f"{name}.{os.getpid()}")
    return tuple(now.entries.values())


def _hash(path: Path) -> tuple[str, int]:
    descriptor = open_to_read(path)
    try:
        return hash_of(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- errors


def _check_readable(workdir: Path, unreadable: Iterable[tuple[str, OSError]]) -> None:
    if lines := [f"  {shown(path)}: {error.strerror}" for path, error in sorted(dict(unreadable).items())]:
        text = "\n".join([f"the workdir {workdir} cannot be synced because these cannot be read:", *lines])
        raise NotFoundError(text, hint=f"make it readable for you, or {LEAVE_OUT}")


def _check_links(workdir: Path, entries: Iterable[Entry]) -> None:
    links = {e.path: e.mark for e in entries if e.kind == LINK}
    lines = [f"  {shown(path)} -> {shown(links[path])}" for path in links if leads_outside(path, links)]
    if not lines:
        return
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    text = f"the workdir {workdir} cannot be synced: links lead out of it, where a host has other files or none:"
    hint = f"put the files themselves there, use a relative link to a place inside, or {LEAVE_OUT}"
    raise WorkdirError("\n".join([text, *lines[:SHOWN], *more]), hint=hint)


def _check_size(workdir: Path, entries: Iterable[Entry], limit: int) -> None:
    sizes = {e.path: e.size for e in entries if e.size}
    total = sum(sizes.values())
    if total <= limit:
        return
    lines = [f"  {show_bytes(size):>10}  {shown(path)}" for path, size in heaviest(sizes)]
    text = f"the workdir {workdir} has {show_bytes(total)} to sync, more than sync_limit allows ({show_bytes(limit)}):"
    hint = "leave out what hosts do not need by .forgeignore (same syntax as .gitignore), or raise sync_limit"
    raise WorkdirError("\n".join([text, *lines]), hint=hint)
