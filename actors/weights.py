"""Weights in flight: one safetensors file a version in shared memory, published whole, read without a copy."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import mmap
import os
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.waiting import TooSlow, within
from forgectl import BusyError, NotFoundError, TimedOutError, UnreachableError, shared_folder

if TYPE_CHECKING:
    import torch

KEPT = 2
"""Versions that stay when a new one is published, the new one included."""
CHUNK = 4 << 20
"""Bytes of a message between hosts."""
_MOST_AT_ONCE = 1 << 30  # bytes of one system call; Linux takes just under 2 GiB
_ALIGNED = 64
_VERSION = re.compile(r"(\d+)\.safetensors")
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Where a tensor is in a safetensors file."""

    dtype: str
    """As safetensors names it: "BF16"."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte, counted from the start of the file."""
    end: int


class Fetched:
    """One version of weights, open for reading. It stays whole when its file is dropped or replaced meanwhile."""

    def __init__(self, version: int, file: int) -> None:
        """`file` is the descriptor of the safetensors file; it belongs to this object from now on."""
        self.version = version
        self._file = file
        self.entries = read_header(file)
        """Where each tensor is, by name."""

    def __del__(self) -> None:
        """Close the file. Tensors that were taken from it live on."""
        with suppress(AttributeError):
            os.close(self._file)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, on the CPU, read in place: no byte is copied before it is used.

        They share the pages of the file with all other readers. Who writes into one gets a private copy of that page.
        """
        return tensors_in(mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY), self.entries)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file).st_size

    def read(self, begin: int, count: int) -> bytes:
        """At most so many bytes of the file."""
        return os.pread(self._file, count, begin)

    def copy_to(self, targets: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors into those of the same names, in place; they may have other dtypes and devices.

        This is faster than copying from `tensors` where a target is contiguous, on the CPU, and of the same dtype: the
        kernel then copies without mapping a page. Raises ValueError where names or shapes differ.
        """
        import torch

        ours = {name: entry.shape for name, entry in self.entries.items()}
        theirs = {name: tuple(target.shape) for name, target in targets.items()}
        if ours != theirs:
            name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise ValueError(
                f"version {self.version} of the weights does not fit: {name} has shape "
                f"{ours.get(name, '(missing)')} in the file and {theirs.get(name, '(missing)')} in the model"
            )
        with torch.no_grad():
            for name, target in targets.items():
                if self._is_plain(name, target):
                    _read(self._file, _bytes_of(target), self.entries[name].begin)
                else:
                    target.copy_(self.tensors[name])

    def _is_plain(self, name: str, target: torch.Tensor) -> bool:
        """Whether the memory of the target is to have the very bytes of the file."""
        same = str(target.dtype) == f"torch.{_DTYPES[self.entries[name].dtype]}"
        return same and target.device.type == "cpu" and target.is_contiguous()


class WeightStore:
    """Versions of a model's weights, for all processes of a run on one host; a plain object that pickles.

    A version is one safetensors file in shared memory. It is written under another name and renamed when it is whole,
    so nobody sees half of one, whenever a writer dies. Versions only grow, and the newest two are kept. The file of an
    older one is written again for the next, where nobody has it open or mapped: its pages are there already, so that
    from the third version on publishing takes as long as a memcpy, a fifth of the time that new pages take.
    """

    def __init__(
        self, name: str, folder: str | os.PathLike[str] | None = None, disk: str | os.PathLike[str] | None = None
    ) -> None:
        """`name` tells the stores of a run apart.

        Args:
            name: one word, without slashes.
            folder: where the files are; None: the run's shared memory on this host.
            disk: where files go for which there is no room; None: the run's directory on this host if `folder` is
                None, too; else there is no such folder.
        """
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ValueError(f"the name of a weight store must be one word, not {name!r}")
        self.name = name
        self._folder = folder
        self._disk = disk
        self._pages: list[_Pages] = []  # of files that this process wrote

    @property
    def folder(self) -> Path:
        """Where the files are. It is made if it is missing."""
        folder = shared_folder() / "weights" / self.name if self._folder is None else Path(self._folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    @property
    def disk(self) -> Path | None:
        """Where files go for which `folder` has no room; None: nowhere."""
        if self._disk is None:
            return None if self._folder is not None else shared_folder(on_disk=True) / "weights"
        return Path(self._disk)

    def path(self, version: int) -> Path:
        """The file of a version."""
        return self.folder / f"{version}.safetensors"

    def versions(self) -> list[int]:
        """The complete versions, the oldest first."""
        found = (_VERSION.fullmatch(name) for name in os.listdir(self.folder))  # noqa: PTH208  # only names are needed
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The highest complete version; None before the first."""
        return max(self.versions(), default=None)

    def publish(self, version: int | None, tensors: Mapping[str, torch.Tensor]) -> int:
        """Write the tensors as a version, and drop all but the newest two. Returns the version.

        Args:
            version: higher than all before; None: the next.
            tensors: by their Hugging Face names, on any device.

        Raises:
            ValueError: the version is not higher than the latest, or a tensor has a dtype that safetensors has not.
            BusyError: there is no room for it.
        """
        import torch

        with self._alone("publish"):
            latest = self.latest()
            version = (latest or 0) + 1 if version is None else version
            if version < 0 or (latest is not None and version <= latest):
                raise ValueError(f"weights {self.name!r}: version {version} does not follow the latest, {latest}")
            header, entries = make_header(tensors, {"version": str(version)})
            size = max((entry.end for entry in entries.values()), default=len(header))
            with self._new(version, "publishing", size) as view, torch.no_grad():
                view[: len(header)] = header
                for name, target in tensors_in(view, entries).items():
                    target.copy_(tensors[name])
        return version

    def fetch(self, version: int | None = None, timeout: float = 0.0) -> Fetched:
        """Open a version that is on this host; the latest if it is None. Nothing is copied.

        Args:
            version: which.
            timeout: seconds to wait until it is published. The thread waits; in an event loop use `asyncio.to_thread`.

        Raises:
            NotFoundError: the version was dropped, since newer ones are there.
            TimedOutError: it is not there in time.
        """
        deadline = time.monotonic() + timeout
        while (fetched := self._open(version)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                what = "a version" if version is None else f"version {version}"
                raise TimedOutError(
                    f"weights {self.name!r}: {what} was not published within {timeout:g} s ({self.folder})"
                )
            time.sleep(min(0.01, left))
        return fetched

    async def receive(self, source: Any, version: int | None = None, timeout: float = 60.0) -> Fetched:
        """As `fetch`, from an actor on another host if this host does not have the version yet.

        One process of the host receives it, and the others wait for it and share its pages.

        Args:
            source: the handle of one rank with an endpoint `read_weights(name, version)` that streams what
                `stream_file` yields.
            version: which; the latest of the source if it is None.
            timeout: seconds to wait for each message of the source.

        Raises:
            ActorDied: the source died meanwhile. The next process tries anew.
            UnreachableError: the source ended before it had sent all bytes.
            TimedOutError: the source sent nothing for so long.
        """
        if version is not None and (fetched := self._open(version, dropped_is_error=False)):
            return fetched
        async with self._receiving(), aclosing(source.read_weights.stream(self.name, version)) as parts:
            found, size, begin = version or 0, 0, 0
            try:
                found, size = await within(timeout, anext(parts))
                if not self.path(found).exists():
                    with self._new(found, "receiving", size) as view:
                        while begin < size:
                            part = await within(timeout, anext(parts))
                            view[begin : begin + len(part)] = part
                            begin += len(part)
            except (TooSlow, TimeoutError, asyncio.TimeoutError):
                raise TimedOutError(f"weights {self.name!r}: {source} sent nothing for {timeout:g} s") from None
            except StopAsyncIteration:
                raise UnreachableError(
                    f"weights {self.name!r}: {source} ended after {begin} of {size} bytes of version {found}"
                ) from None
            return self.fetch(found)

    async def stream_file(self, version: int | None = None) -> AsyncIterator[tuple[int, int] | bytes]:
        """The version and the size of its file in bytes, then the file in chunks; the latest version if it is None.

        An actor that has the weights lends it to `receive` so:

            @endpoint(concurrent=True)
            async def read_weights(self, name: str, version: int | None):
                async for part in self.store.stream_file(version):
                    yield part
        """
        fetched = self.fetch(version)
        yield fetched.version, fetched.size
        for begin in range(0, fetched.size, CHUNK):
            yield fetched.read(begin, CHUNK)

    def drop(self, before: int) -> None:
        """Remove the versions below `before`, but never the latest. Readers keep what they have."""
        for version in self.versions()[:-1]:
            if version < before:
                self._remove(self.path(version))

    def _open(self, version: int | None, *, dropped_is_error: bool = True) -> Fetched | None:
        """The version, if it is there; the latest if it is None."""
        while (wanted := self.latest() if version is None else version) is not None:
            with suppress(FileNotFoundError):
                file = os.open(self.path(wanted), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    # Between the look-up of the name and its opening the file may have been taken for a newer version.
                    if os.path.samestat(os.fstat(file), self.path(wanted).stat()):
                        return Fetched(wanted, os.dup(file))
                finally:
                    os.close(file)
            if version is not None:
                if dropped_is_error and (newer := self.latest()) is not None and newer > version:
                    raise NotFoundError(
                        f"weights {self.name!r}: version {version} was dropped; the latest is {newer}",
                        hint="fetch the latest, by version=None",
                    )
                return None
        return None

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Hold a lock of this host, which the kernel frees however its holder ends."""
        with open(self.folder / f"{what}.lock", "wb", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @asynccontextmanager
    async def _receiving(self) -> AsyncIterator[None]:
        with open(self.folder / "receive.lock", "wb", opener=_private) as lock:  # noqa: ASYNC230  # in memory
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.01)  # the kernel tells no event loop that a lock is free
            yield

    @contextmanager
    def _new(self, version: int, draft_name: str, size: int) -> Iterator[mmap.mmap]:
        """Memory of so many bytes to write, which becomes the version at the end, unless there is an error."""
        draft = self.folder / draft_name
        old = self.versions()[: 1 - KEPT]
        if old and not os.path.lexists(draft):  # a writer that died leaves one
            self.path(old.pop(0)).replace(draft)
        for each in old:
            self._remove(self.path(each))
        try:
            pages = self._room(draft, size)
            yield pages.view(size)
            pages.release()
            draft.replace(self.path(version))
        except BaseException:
            self._remove(draft)
            raise
        self._pages = [each for each in (*self._pages, pages) if each.has_name()]

    def _room(self, draft: Path, size: int) -> _Pages:
        """The draft with its space reserved: in pages that are there, in new ones, or on the disk."""
        kept = [pages for pages in self._pages if pages.is_of(draft)]
        self._pages = [pages for pages in self._pages if pages not in kept]
        pages = kept[0] if kept else _Pages.reopened(draft)
        if pages is None or not pages.claim():
            self._remove(draft)
            pages = _Pages.created(draft)
        if pages.reserve(size):
            return pages
        self._remove(draft)
        if (disk := self.disk) is None:
            raise self._full(self.folder, size, "make room, or give the store a folder on a disk, by disk=")
        elsewhere = disk / f"{self.name}-{uuid.uuid4().hex}.safetensors"
        elsewhere.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.symlink_to(elsewhere.absolute())
        pages = _Pages.created(elsewhere)
        if not pages.reserve(size):
            raise self._full(elsewhere.parent, size, "give it more room")
        if self.name not in _spilled:
            _spilled.add(self.name)
            _log.warning("weights %r: %s has no room for %d bytes; they go to %s", self.name, self.folder, size, disk)
        return pages

    def __getstate__(self) -> dict[str, Any]:
        """Without the pages, which belong to this process."""
        return {**self.__dict__, "_pages": []}

    def _full(self, folder: Path, size: int, hint: str) -> BusyError:
        free = os.statvfs(folder)
        return BusyError(
            f"weights {self.name!r}: {folder} has {free.f_bavail * free.f_frsize:,} bytes free, "
            f"and a version takes {size:,}",
            hint=hint,
        )

    def _remove(self, path: Path) -> None:
        """Remove a file, and what it stands for if it is on the disk."""
        with suppress(FileNotFoundError):
            if path.is_symlink():
                path.readlink().unlink(missing_ok=True)
            path.unlink()


class _Pages:
    """A file that this process writes. It stays mapped, so that it can be written again without a page fault."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._view: mmap.mmap | None = None

    def __del__(self) -> None:
        os.close(self._file)

    @classmethod
    def created(cls, path: Path) -> _Pages:
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @classmethod
    def reopened(cls, path: Path) -> _Pages | None:
        """Of a file that another process wrote; None where there is none."""
        with suppress(OSError):  # a link leads to a file on the disk
            return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        return None

    def is_of(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), path.lstat())
        except FileNotFoundError:
            return False

    def has_name(self) -> bool:
        """Whether the file has not been removed."""
        return os.fstat(self._file).st_nlink > 0

    def claim(self) -> bool:
        """Whether no other has the file open or mapped; if so, none can open it until `release`.

        The kernel grants a write lease only then, whoever the others are (fcntl(2), "Leases").
        """
        try:
            fcntl.fcntl(self._file, fcntl.F_SETSIG, signal.SIGURG)  # if one tries to; ignored by default, unlike SIGIO
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        return True

    def release(self) -> None:
        with suppress(OSError):  # a new file was not claimed
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def reserve(self, size: int) -> bool:
        """Make the file so long, with all its space; whether there was room."""
        try:
            os.truncate(self._file, size)
            if os.fstat(self._file).st_blocks * 512 < size:
                os.posix_fallocate(self._file, 0, size)
        except OSError as e:
            if e.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            return False
        return True

    def view(self, size: int) -> mmap.mmap:
        """The bytes of the file."""
        if self._view is None or len(self._view) != size:
            self._view = mmap.mmap(self._file, size)
        return self._view


def tensors_in(view: mmap.mmap, entries: Mapping[str, Entry]) -> dict[str, torch.Tensor]:
    """Tensors whose memory is the given one, at the given places."""
    import torch

    found = {}
    for name, entry in entries.items():
        dtype = getattr(torch, _DTYPES[entry.dtype])
        count = (entry.end - entry.begin) // dtype.itemsize
        flat = torch.frombuffer(view, dtype=dtype, count=count, offset=entry.begin) if count else torch.empty(0)
        found[name] = flat.to(dtype).view(entry.shape)
    return found


def make_header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, Entry]]:
    """The start of a safetensors file for some tensors, and where each goes.

    `metadata` is of texts. Raises ValueError for a dtype that safetensors has not.
    """
    names = {f"torch.{ours}": theirs for theirs, ours in _DTYPES.items()}
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in names:
            raise ValueError(f"{name} is of {tensor.dtype}, which a safetensors file cannot hold")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    described: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = names[str(tensors[name].dtype)], list(tensors[name].shape)
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    header = len(text).to_bytes(8, "little") + text
    return header, _entries(described, len(header))


def read_header(file: int) -> dict[str, Entry]:
    """Where the tensors of a safetensors file are, from its descriptor. Raises ValueError for any other file."""
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    try:
        if length > size - 8:
            raise ValueError(f"its header has {length} bytes, the file {size}")
        described = json.loads(os.pread(file, length, 8))
        entries = _entries(described, 8 + length)
        if (end := max((entry.end for entry in entries.values()), default=8 + length)) != size:
            raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{Path(f'/proc/self/fd/{file}').readlink()} is no whole safetensors file: {e}") from None
    return entries


def _entries(described: Mapping[str, Any], start: int) -> dict[str, Entry]:
    return {
        name: Entry(each["dtype"], tuple(each["shape"]), *(start + at for at in each["data_offsets"]))
        for name, each in described.items()
        if name != "__metadata__"
    }


_spilled: set[str] = set()  # names of stores that said so


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    import torch

    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _read(file: int, target: memoryview, begin: int) -> None:
    while target:
        if not (count := os.preadv(file, [target[:_MOST_AT_ONCE]], begin)):
            raise ValueError(f"the file of the weights ends at byte {begin}")
        target, begin = target[count:], begin + count
