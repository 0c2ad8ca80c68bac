"""Names of runs, meshes and services: which are valid, and how one is made from other text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable
from itertools import count

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

DEFAULT_SPECS = ("forge.yaml", "forge.yml")
"""Names of the file that is the spec of its folder: commands need not name it, and its run has the folder's name."""
DRIVER = "driver"
"""The name that only the mesh of a run's driver has."""
SECRETS = "FORGE_SECRETS"
"""The environment variable that lists which other variables of a process are secrets."""
DRIVER_KEY = "@driver"
"""The name of the key with which a run's driver dials the messengers of hosts. No host can have this name."""
STOP_FILE = "stop.json"
"""The file beside the logs of a generation of actors that says why the generation was ended."""
NET_SOCKET = "messenger-net"
"""The Unix socket of a machine's messenger for links that come through ssh."""


def name_of(text: str, otherwise: str) -> str:
    """A valid name like `text`, short enough to append a number; `otherwise` if no character of it is usable."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:50] or otherwise


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or the first of NAME-2, NAME-3 and on that is not taken."""
    if name not in taken:
        return name
    return next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in taken)


def service_of(mesh: str, kind: str) -> str | None:
    """The service of which a mesh is a replica, as judge of judge.0; None if it is none's."""
    return mesh.rpartition(".")[0] if kind == "service" else None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be, if any."""
    import difflib  # needed only after a mistake

    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def socket_prefix(mesh: str) -> str:
    """The start of the names of the sockets of a mesh's ranks: short, because socket addresses are."""
    return hashlib.blake2s(mesh.encode(), digest_size=6).hexdigest()
