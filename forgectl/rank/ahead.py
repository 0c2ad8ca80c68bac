"""What a fork server of actors imports besides `preload:`: ours, and all that Monarch needs and that is safe to fork.

Monarch itself is not, for it starts threads; each rank imports it after the fork, in half the time thanks to these.
Its library is mapped and relocated before, which starts none: of 300 MB each rank has 11 MB less of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
from pathlib import Path

MONARCHS_NEEDS = (
    *("asyncio", "cloudpickle", "concurrent.futures.thread", "http.client", "pdb", "socketserver", "urllib.request"),
    *("opentelemetry.context", "opentelemetry.metrics", "opentelemetry.trace"),
    *("pyre_extensions", "tabulate", "typing_inspect"),
    *("forgectl.actor.forge_actor", "forgectl.actor.performer", "forgectl.actor.raised"),
)

for _name in MONARCHS_NEEDS:
    with contextlib.suppress(Exception):  # another version of Monarch needs others
        importlib.import_module(_name)


def _map_library() -> None:
    spec = importlib.util.find_spec("monarch")
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (library := Path(folder, f"_rust_bindings{suffix}")).exists():
                ctypes.CDLL(str(library))
                return


with contextlib.suppress(OSError):  # each rank will say what is wrong with it
    _map_library()
