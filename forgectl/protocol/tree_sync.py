"""The launching machine and the relay: a workdir, and which of its files the host lacks."""

from __future__ import annotations

from forgectl.frozen import dataclass
from forgectl.wire.envelope import Refusal


@dataclass(frozen=True)
class Sync:
    """Make the host's tree `key` equal to a workdir whose listing has the hash `digest`.

    Answered by SendListing or Wanted.
    """

    key: str
    digest: str


@dataclass(frozen=True)
class SendListing:
    """The host does not have this listing."""


@dataclass(frozen=True)
class Listing:
    """Some entries of the workdir, numbered from 0 across all messages; a folder comes before its content.

    The fields are columns of equal length: see `forgectl.sync.listing.Entry`.
    """

    paths: tuple[str, ...]
    kinds: str
    sizes: tuple[int, ...]
    marks: tuple[str, ...]
    last: bool


@dataclass(frozen=True)
class Wanted:
    """The numbers of files whose content is not on the host."""

    files: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class Contents:
    """The content of these files follows, `sizes` bytes of each, end to end; a size of GONE means the file is gone.

    `more`: the last file continues in the next message. A file that is sent again has changed meanwhile.
    """

    files: tuple[int, ...]
    sizes: tuple[int, ...]
    more: bool


GONE = -1


@dataclass(frozen=True)
class Sent:
    """All content has been sent, or as much as makes sense after a Refusal."""


@dataclass(frozen=True)
class TreeSynced:
    """The tree at `path` is as listed, except the files in `changed` (numbers), which have changed since.

    `deleted` is the number of entries that were removed.
    """

    path: str
    deleted: int
    changed: tuple[int, ...]


SYNC_TO_RELAY = (Sync, Listing, Contents, Sent)


RELAY_TO_SYNC = (SendListing, Wanted, TreeSynced, Refusal)
