"""What runs, meshes and services may be called, and how a name is made of what there is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable
from itertools import count

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

DRIVER = "driver"
"""The mesh of a run's driver, and of nothing else."""
SECRETS = "FORGE_SECRETS"
"""The variable that tells each process of a run which of its others are secrets."""
DRIVER_KEY = "@driver"
"""The name of the key with which a run's driver dials the messengers of its hosts: no host has it."""
NET_SOCKET = "messenger-net"
"""The Unix socket at which a machine's messenger is reached by links that come through ssh."""


def name_of(text: str, otherwise: str) -> str:
    """A name like `text`, short enough to be numbered; `otherwise` where nothing of it can be used."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:50] or otherwise


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or the first of NAME-2, NAME-3 and on that is not taken."""
    if name not in taken:
        return name
    return next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in taken)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """What of `known` was probably meant by `word`."""
    import difflib  # only who is mistaken needs it

    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def socket_prefix(mesh: str) -> str:
    """What the names of the sockets of a mesh's ranks begin with: short, as the addresses of sockets are."""
    return hashlib.blake2s(mesh.encode(), digest_size=6).hexdigest()
