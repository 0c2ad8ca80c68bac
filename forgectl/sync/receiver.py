"""The host's end of a sync: receives the listing, asks for content that is missing here, and puts it in place."""

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
"""Seconds after which a silent launcher loses its turn: others may be waiting for the tree."""
WANTED_AT_ONCE = 100_000

T = TypeVar("T")


def receive(connection: Connection, request: Sync, root: Path) -> None:
    """Serve one sync of a tree below `root`, to its last answer; errors of this host's disk are answered, too.

    Raises ConnectionError or TimeoutError if the launcher is gone, and ProtocolError if it breaks the protocol: then
    the connection cannot be used any more.
    """
    try:
        _check_key(request.key)
        with hold(root, request.key) as target:
            answer = _sync(connection, request, target)
        if answer is not None:
            connection.send(answer)
    except (ConnectionError, TimeoutError):
        raise
    except ProtocolError as e:
        with contextlib.suppress(OSError):
            connection.send(Refusal(70, f"the workdir cannot be synced: {e}"))
        raise
    except OSError as e:
        connection.send(refusal(e))


def refusal(error: OSError) -> Refusal:
    """The refusal for an OSError while writing the tree."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space there, or leave more out by .forgeignore"
    else:
        hint = "check that path on the host, then try again"
    where = f": {error.filename!r}" if error.filename is not None else ""
    return Refusal(75, f"the workdir could not be written: {error.strerror or error}{where}", hint)


def _check_key(key: str) -> None:
    if not NAME.fullmatch(key):
        raise ProtocolError(f"{key[:80]!r} is not a name of a tree")


def _sync(connection: Connection, request: Sync, target: SyncTarget) -> TreeSynced | None:
    """The whole conversation; None if it ended with a Refusal."""
    entries = _entries(connection, request.digest, target)
    wanted = target.examine(entries)
    for start in range(0, max(1, len(wanted)), WANTED_AT_ONCE):
        batch = tuple(wanted[start : start + WANTED_AT_ONCE])
        connection.send(Wanted(batch, last=start + WANTED_AT_ONCE >= len(wanted)))
    received = _Receiving(connection, target.staging, wanted).run()
    if received is None:
        return None
    final, changed = as_received(entries, received)
    deleted = target.settle(final, "" if changed else request.digest)
    return TreeSynced(str(target.path), deleted, tuple(changed))


def _entries(connection: Connection, digest: str, target: SyncTarget) -> Sequence[Entry]:
    """The entries of the workdir: those of the last sync if it had this digest, else those that the launcher sends."""
    if digest and target.index.digest == digest:
        return tuple(target.index.entries.values())
    connection.send(SendListing())
    entries: list[Entry] = []
    last = False
    while not last:
        part = _expect(connection, Listing)
        entries += listed(part)
        last = part.last
        if len(entries) > MOST_ENTRIES:
            raise ProtocolError(f"more than {MOST_ENTRIES} entries")
    check_entries(entries)
    if digest_of(entries) != digest:
        raise ProtocolError("the listing is not the one that was announced")
    return entries


def as_received(entries: Sequence[Entry], received: dict[int, tuple[str, int] | None]) -> tuple[list[Entry], list[int]]:
    """The entries with the received content, without files that were gone; and the numbers of those that changed.

    `received` has number → hash and size, or None for a file that was gone.
    """
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

    def __init__(self, connection: Connection, staging: Staging, wanted: Sequence[int]) -> None:
        self._connection = connection
        self._staging = staging
        self._wanted = frozenset(wanted)
        self._received: dict[int, tuple[str, int] | None] = {}
        self._open: int | None = None  # the file that continues in the next message

    def run(self) -> dict[int, tuple[str, int] | None] | None:
        """Number → hash and size, or None for a file that was gone. None if the disk failed; a Refusal was sent."""
        refused = False
        while not isinstance(message := _expect(self._connection, Contents, Sent), Sent):
            data = memoryview(self._connection.receive_bytes(self._length(message), LONGEST_SILENCE))
            if refused:
                continue  # until the launcher has read the refusal
            try:
                self._stage(message, data)
            except OSError as e:
                self._connection.send(refusal(e))
                refused, self._open = True, None
                with contextlib.suppress(OSError):
                    self._staging.clear()  # do not keep a full disk full for nothing
        if refused:
            return None
        if self._open is not None or self._received.keys() != self._wanted:
            raise ProtocolError("not all wanted content was sent")
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
            raise ProtocolError("another file before the end of the last one")
        return length

    def _stage(self, message: Contents, data: memoryview) -> None:
        """Stage the content of a message; raises OSError."""
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


def _expect(connection: Connection, *kinds: type[T]) -> Any:
    """The next message, of one of these kinds; raises ProtocolError, ConnectionError, TimeoutError."""
    message = connection.receive(LONGEST_SILENCE)
    if message is None:
        raise ConnectionResetError("the launcher is gone")
    if not isinstance(message, kinds):
        raise ProtocolError(f"unexpected {type(message).__name__}")
    return message
