"""The host's end of a sync: listens to what the workdir holds, asks for what is missing here, and puts it in place."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from forgectl.names import NAME
from forgectl.protocol.tree_sync import GONE, Contents, Listing, SendListing, Sent, Sync, TreeSynced, Wanted
from forgectl.sync.listing import MOST_ENTRIES, Entry, check_entries, digest_of, listed
from forgectl.sync.staging import Staging
from forgectl.sync.target import SyncTarget, hold
from forgectl.wire.envelope import MAX_LINE, ProtocolError, Refusal
from forgectl.wire.unix_sockets import Connection

LONGEST_SILENCE = 120.0
"""Seconds after which a launcher that says nothing has lost its turn: others may wait for the tree."""
WANTED_AT_ONCE = 100_000

T = TypeVar("T")


def receive(line: Connection, request: Sync, root: Path) -> None:
    """Serve one sync of a tree below `root`, to its last answer; what this host's disk refuses is answered, too.

    Raises ConnectionError or TimeoutError when the launcher is gone, and ProtocolError when it says what it must not:
    then the connection is of no more use.
    """
    try:
        _check_key(request.key)
        with hold(root, request.key) as site:
            answer = _sync(line, request, site)
        if answer is not None:
            line.send(answer)
    except (ConnectionError, TimeoutError):
        raise
    except ProtocolError as e:
        with contextlib.suppress(OSError):
            line.send(Refusal(70, f"the workdir cannot be synced: {e}"))
        raise
    except OSError as e:
        line.send(refusal(e))


def refusal(error: OSError) -> Refusal:
    """What the host's disk had against it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room there, or leave more out by .forgeignore"
    else:
        hint = "see to that path on the host, then try again"
    where = f": {error.filename!r}" if error.filename is not None else ""
    return Refusal(75, f"the workdir could not be written: {error.strerror or error}{where}", hint)


def _check_key(key: str) -> None:
    if not NAME.fullmatch(key):
        raise ProtocolError(f"{key[:80]!r} is no name of a tree")


def _sync(line: Connection, request: Sync, site: SyncTarget) -> TreeSynced | None:
    """The whole conversation; None where it ended with a Refusal."""
    entries = _entries(line, request.digest, site)
    wanted = site.examine(entries)
    for start in range(0, max(1, len(wanted)), WANTED_AT_ONCE):
        batch = tuple(wanted[start : start + WANTED_AT_ONCE])
        line.send(Wanted(batch, last=start + WANTED_AT_ONCE >= len(wanted)))
    received = _Receiving(line, site.staging, wanted).run()
    if received is None:
        return None
    final, changed = as_received(entries, received)
    deleted = site.settle(final, "" if changed else request.digest)
    return TreeSynced(str(site.path), deleted, tuple(changed))


def _entries(line: Connection, digest: str, site: SyncTarget) -> Sequence[Entry]:
    """What the workdir holds: as it was at the last sync, if that had this digest, else as the launcher tells."""
    if digest and site.index.digest == digest:
        return tuple(site.index.entries.values())
    line.send(SendListing())
    entries: list[Entry] = []
    last = False
    while not last:
        part = _expect(line, Listing)
        entries += listed(part)
        last = part.last
        if len(entries) > MOST_ENTRIES:
            raise ProtocolError(f"more than {MOST_ENTRIES} entries")
    check_entries(entries)
    if digest_of(entries) != digest:
        raise ProtocolError("the listing is not the one that was announced")
    return entries


def as_received(entries: Sequence[Entry], received: dict[int, tuple[str, int] | None]) -> tuple[list[Entry], list[int]]:
    """The entries with the content that came, without files that were gone; and the numbers of those that differ."""
    final, changed = [], []
    for number, entry in enumerate(entries):
        as_listed = (entry.mark, entry.size)
        came = received.get(number, as_listed)
        if came == as_listed:
            final.append(entry)
            continue
        changed.append(number)
        if came is not None:
            final.append(replace(entry, mark=came[0], size=came[1]))
    return final, changed


class _Receiving:
    """The content of the wanted files, as it comes in."""

    def __init__(self, line: Connection, staging: Staging, wanted: Sequence[int]) -> None:
        self._line = line
        self._staging = staging
        self._wanted = frozenset(wanted)
        self._received: dict[int, tuple[str, int] | None] = {}
        self._open: int | None = None  # the file that goes on in the next message

    def run(self) -> dict[int, tuple[str, int] | None] | None:
        """Number → hash and size, or None for a file that was gone. None where the disk refused, which was answered."""
        refused = False
        while not isinstance(message := _expect(self._line, Contents, Sent), Sent):
            data = memoryview(self._line.receive_bytes(self._length(message), LONGEST_SILENCE))
            if refused:
                continue  # until the launcher has heard of it
            try:
                self._stage(message, data)
            except OSError as e:
                self._line.send(refusal(e))
                refused, self._open = True, None
                with contextlib.suppress(OSError):
                    self._staging.clear()  # a disk that is full should not stay so for nothing
        if refused:
            return None
        if self._open is not None or self._received.keys() != self._wanted:
            raise ProtocolError("not all content came that was wanted")
        return self._received

    def _length(self, message: Contents) -> int:
        if len(message.files) != len(message.sizes) or not message.files or not self._wanted.issuperset(message.files):
            raise ProtocolError("content of files that nobody asked for")
        if any(size < GONE for size in message.sizes) or (message.more and message.sizes[-1] == GONE):
            raise ProtocolError("content of an impossible size")
        length = sum(size for size in message.sizes if size != GONE)
        if length > MAX_LINE:
            raise ProtocolError(f"more than {MAX_LINE} bytes of content at once")
        if self._open is not None and message.files[0] != self._open:
            raise ProtocolError("another file before the last one's end")
        return length

    def _stage(self, message: Contents, data: memoryview) -> None:
        """Take a message's content in; raises OSError."""
        start = 0
        for position, (number, size) in enumerate(zip(message.files, message.sizes, strict=True)):
            if size == GONE:
                self._staging.drop()
                self._open = None
                self._received[number] = None
                continue
            self._staging.write(data[start : start + size])
            start += size
            if message.more and position == len(message.files) - 1:
                self._open = number
            else:
                self._open = None
                self._received[number] = self._staging.finish()


def _expect(line: Connection, *kinds: type[T]) -> Any:
    """The next message, of one of these kinds; raises ProtocolError, ConnectionError, TimeoutError."""
    message = line.receive(LONGEST_SILENCE)
    if message is None:
        raise ConnectionResetError("the launcher is gone")
    if not isinstance(message, kinds):
        raise ProtocolError(f"unexpected {type(message).__name__}")
    return message
