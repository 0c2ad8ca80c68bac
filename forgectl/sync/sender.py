"""The launching end of a sync: sends a host the workdir's listing, and the content that is missing there."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from forgectl.errors import TimedOutError, UnreachableError
from forgectl.protocol.tree_sync import GONE, Contents, SendListing, Sent, Sync, TreeSynced, Wanted
from forgectl.sync.hash_index import stamp_of
from forgectl.sync.listing import PIECE
from forgectl.sync.scan import Tree
from forgectl.system.files import open_to_read
from forgectl.wire.envelope import ProtocolError, Refusal
from forgectl.wire.unix_sockets import Connection

FILES_AT_ONCE = 1000
TRIES = 3
"""Attempts to read a file that changes while it is read."""
LAST_WORDS_SECONDS = 5.0
"""How long to wait for the Refusal that explains a broken connection."""
LONGEST_SILENCE = 3600.0
"""Seconds that a host may take to report the missing files, to receive a piece of one, or to settle: it may have much
to hash, and it waits for its turn if another launch syncs to the same tree."""

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far, and the bytes in all."""


@dataclass(frozen=True)
class Pushed:
    """The result of a sync. `path` is the tree on the host; `changed` are files that changed, or went, meanwhile."""

    path: str
    sent_files: int
    sent_bytes: int
    deleted: int
    changed: tuple[str, ...] = ()


def push(
    connection: Connection,
    tree: Tree,
    key: str,
    host: str,
    progress: Progress = lambda done, total: None,
    deadline: float | None = None,
) -> Pushed:
    """Make the tree `key` of a host equal to a workdir; `connection` leads to its relay.

    Raises UnreachableError if the connection ends, TimedOutError at the `deadline` (of the monotonic clock), else the
    error of the host's Refusal. Several hosts may be pushed to at once, each from a thread of its own.
    """
    try:
        return _push(_Paced(connection, deadline), tree, key, progress)
    except _Refused as e:
        raise e.refusal.error(f"host {host}: ") from None
    except ProtocolError as e:
        hint = "what answers there is not forgectl's relay, or is broken: check that host"
        why = f"host {host}: the sync of the workdir went out of step: {str(e)[:500]}"
        raise UnreachableError(why, hint=hint) from None
    except TimeoutError:
        if deadline is not None and time.monotonic() >= deadline:
            why = f"host {host}: the workdir was not synced within --timeout"
            raise TimedOutError(why, hint="try again: what has arrived is not sent twice") from None
        why = f"host {host} did not continue the sync of the workdir for {LONGEST_SILENCE:g} s"
        raise UnreachableError(why, hint="check that host; what has arrived is not sent twice") from None
    except ConnectionError:
        why = f"host {host}: the connection was lost while the workdir was synced"
        raise UnreachableError(why, hint="try again: what has arrived is not sent twice") from None


class _Refused(Exception):
    """The host has refused to continue."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Paced:
    """A connection on which no step takes longer than LONGEST_SILENCE, or runs past a deadline."""

    def __init__(self, connection: Connection, deadline: float | None) -> None:
        self._connection = connection
        self._deadline = deadline

    def _left(self, most: float) -> float:
        """Seconds that the next step may take; raises TimeoutError if none are left."""
        if self._deadline is None:
            return most
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(most, left)

    def send(self, message: Any) -> None:
        self._connection.socket.settimeout(self._left(LONGEST_SILENCE))
        self._connection.send(message)

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Send bytes in pieces, so that a long listing over a slow link does not count as silence."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            self._connection.socket.settimeout(self._left(LONGEST_SILENCE))
            self._connection.send_bytes(view[start : start + PIECE])

    def receive(self, most: float = LONGEST_SILENCE) -> Any:
        return self._connection.receive(self._left(most))

    def has_more(self) -> bool:
        """Whether there is something to receive, without waiting for it."""
        poll = select.poll()
        poll.register(self._connection.socket, select.POLLIN)
        return self._connection.pending or bool(poll.poll(0))


def _push(connection: _Paced, tree: Tree, key: str, progress: Progress) -> Pushed:
    sending = _Sending(connection, tree, progress)
    try:
        connection.send(Sync(key, tree.digest))
        wanted = _wanted(connection, tree)
        sending.run(wanted)
    except ConnectionError:
        if isinstance(last_words := connection.receive(LAST_WORDS_SECONDS), Refusal):
            raise _Refused(last_words) from None
        raise
    done = _answer(connection, TreeSynced)
    if any(not 0 <= number < len(tree.entries) for number in done.changed):
        raise ProtocolError("changed files that are not in the listing")
    changed = tuple(tree.entries[number].path for number in done.changed)
    return Pushed(done.path, len(wanted), sending.sent, done.deleted, changed)


def _wanted(connection: _Paced, tree: Tree) -> list[int]:
    """The numbers of the files that the host wants, each once; sends the listing first if it asks for it."""
    answer = _answer(connection, SendListing, Wanted)
    if isinstance(answer, SendListing):
        connection.send_bytes(tree.listing)
        answer = _answer(connection, Wanted)
    wanted: dict[int, None] = {}
    while True:
        for number in answer.files:
            if not 0 <= number < len(tree.entries) or not tree.entries[number].is_file:
                raise ProtocolError("the host wants files that are not in the listing")
            if number in wanted:
                raise ProtocolError("the host wants a file twice")
            wanted[number] = None
        if answer.last:
            return list(wanted)
        if not answer.files:
            raise ProtocolError("the host wants no files, but announces more")
        answer = _answer(connection, Wanted)


def _answer(connection: _Paced, *kinds: type) -> Any:
    """The host's next message. It may take long: the host hashes files that ranks have changed there."""
    message = connection.receive()
    if message is None:
        raise ConnectionResetError("the relay is gone")
    if isinstance(message, Refusal):
        raise _Refused(message)
    if not isinstance(message, kinds):
        raise ProtocolError(f"unexpected {type(message).__name__}")
    return message


@dataclass
class _Pack:
    """Content for one message."""

    files: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    length: int = 0

    def add(self, number: int, data: bytes | None) -> None:
        self.files.append(number)
        self.sizes.append(GONE if data is None else len(data))
        if data:
            self.data.append(data)
            self.length += len(data)

    @property
    def full(self) -> bool:
        return self.length >= PIECE or len(self.files) >= FILES_AT_ONCE


class _Sending:
    """Sends files without waiting for answers, many small ones in one message."""

    def __init__(self, connection: _Paced, tree: Tree, progress: Progress) -> None:
        self._connection = connection
        self._tree = tree
        self._progress = progress
        self._total = 0
        self.sent = 0

    def run(self, wanted: Sequence[int]) -> None:
        """Send all of it; raises _Refused as soon as the host sends a Refusal."""
        self._total = sum(self._tree.entries[number].size for number in wanted)
        self._progress(0, self._total)
        pack = _Pack()
        for number in wanted:
            for data, more in read_pieces(self._tree.workdir / self._tree.entries[number].path):
                pack.add(number, data)
                if pack.full or more:
                    self._send(pack, more)
                    pack = _Pack()
        if pack.files:
            self._send(pack, False)
        self._connection.send(Sent())
        self._progress(self._total, self._total)

    def _send(self, pack: _Pack, more: bool) -> None:
        self._connection.send(Contents(tuple(pack.files), tuple(pack.sizes), more))
        self._connection.send_bytes(b"".join(pack.data))
        self.sent += pack.length
        self._progress(min(self.sent, self._total), self._total)  # a file that was sent twice counts twice
        if self._connection.has_more():
            self._connection.send(Sent())
            _answer(self._connection)


def read_pieces(path: os.PathLike[str]) -> Iterator[tuple[bytes | None, bool]]:
    """(piece, whether more follow) for all pieces of a file; the piece is None if the file cannot be read (any more).

    It starts again if the file changed while it was read. Each reading ends at the size that the file had at its start,
    so that it also ends for a file that keeps growing.
    """
    for _ in range(TRIES):
        try:
            descriptor = open_to_read(path)
        except OSError:
            yield None, False
            return
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                yield None, False
                return
            yield from _pieces_of(descriptor, before.st_size)
            if stamp_of(os.fstat(descriptor)) == stamp_of(before):
                return
        except OSError:
            yield None, False
            return
        finally:
            os.close(descriptor)


def _pieces_of(descriptor: int, size: int) -> Iterator[tuple[bytes, bool]]:
    left = size
    while True:
        data = os.read(descriptor, min(PIECE, left))
        left = left - len(data) if data else 0
        yield data, left > 0
        if not left:
            return
