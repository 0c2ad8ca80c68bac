"""The code that is shipped to hosts, forgectl's own and the ready-made actors: one archive, named by its digest."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bundle:
    """A compressed archive and its SHA-256."""

    data: bytes
    digest: str


@functools.cache
def stage() -> bytes:
    """The text that unpacks the archive on a host: private.py, whose folder checks it needs, then unpack.py."""
    return b"\n".join((PACKAGE / name).read_bytes() for name in ("system/private.py", "relay/unpack.py"))


@functools.cache
def bundle() -> Bundle:
    """The archive of both packages as they are now. The same files always give the same bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.with_name("actors").rglob("*.py")]):
            data = path.read_bytes()
            info = tarfile.TarInfo(str(path.relative_to(PACKAGE.parent)))
            info.size, info.mode = len(data), 0o600
            archive.addfile(info, io.BytesIO(data))
    data = gzip.compress(packed.getvalue(), compresslevel=6, mtime=0)
    return Bundle(data, hashlib.sha256(data).hexdigest())
