"""The launching machine and the relay: a workdir and what of it is missing there."""

from __future__ import annotations

from forgectl.frozen import dataclass
from forgectl.wire.envelope import Refusal


@dataclass(frozen=True)
class Sync:
    """Make the host's tree `key` equal to a workdir, whose listing has this hash. Answered by SendListing or Wanted."""

    key: str
    digest: str


@dataclass(frozen=True)
class SendListing:
    """The listing is not known here."""


@dataclass(frozen=True)
class Listing:
    """Some entries of the workdir, numbered from 0 through all messages, folders before what they hold.

    Columns, of one length: see `forgectl.sync.listing.Entry`.
    """

    paths: tuple[str, ...]
    kinds: str
    sizes: tuple[int, ...]
    marks: tuple[str, ...]
    last: bool


@dataclass(frozen=True)
class Wanted:
    """Files, by number, whose content is not on the host."""

    files: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class Contents:
    """So many bytes of each of these files follow, end to end; GONE instead of a size for one that is there no more.

    `more`: the last file goes on in the next message. A file that comes again has changed meanwhile.
    """

    files: tuple[int, ...]
    sizes: tuple[int, ...]
    more: bool


GONE = -1


@dataclass(frozen=True)
class Sent:
    """That was all the content, or all that is worth sending after a Refusal."""


@dataclass(frozen=True)
class TreeSynced:
    """The tree is as listed, but for files (by number) that have changed since; `path` is where it is."""

    path: str
    deleted: int
    changed: tuple[int, ...]


SYNC_TO_RELAY = (Sync, Listing, Contents, Sent)


RELAY_TO_SYNC = (SendListing, Wanted, TreeSynced, Refusal)
