"""What a fork server of actors imports besides `preload:`: ours, and all that Monarch needs and that is safe to fork.

Monarch itself is not, for it starts threads; each rank imports it after the fork, in half the time thanks to these.
Of Monarch two things are made ready that start none: its library is mapped and relocated (of 300 MB each rank has 11 MB
less of its own), and the code of its modules is read, which is a fifth of what is left of the import.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

MONARCHS_NEEDS = (
    *(
        "asyncio",
        "cloudpickle",
        "concurrent.futures.thread",
        "http.client",
        "multiprocessing.reduction",
        "pdb",
        "socketserver",
        "urllib.request",
    ),
    *("opentelemetry.context", "opentelemetry.metrics", "opentelemetry.trace"),
    *("pyre_extensions", "tabulate", "typing_inspect"),
    *("forgectl.actor.forge_actor", "forgectl.actor.performer", "forgectl.actor.raised"),
)

MONARCHS_OWN = {
    "monarch": ("_src", "actor", "config", "tools"),
    "monarch.actor": ("concurrent",),
    "monarch.tools": ("config", "debug_env", "utils"),
    "monarch.tools.config": ("environment", "workspace"),
    "monarch._src": ("actor",),
    "monarch._src.actor": (
        *("actor_mesh", "bootstrap", "bootstrap_main", "code_sync", "concurrent", "config", "debugger", "endpoint"),
        *("future", "host_mesh", "ipython_check", "logging", "mpsc", "proc_mesh", "python_extension_methods"),
        *("returns_future", "shape", "supervision", "sync_state", "telemetry", "tensor_engine_shim", "waker"),
    ),
    "monarch._src.actor.debugger": (
        *("breakpoint", "debug_command", "debug_controller", "debug_io", "debug_session", "pdb_wrapper"),
    ),
}
"""What a rank imports of Monarch, by package; each after the package that it is in."""


class ReadAhead:
    """Finds Monarch's modules with their code read already, as PathFinder would have found them."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec] = {}
        self._read("monarch", None)
        for package, names in MONARCHS_OWN.items():
            if (spec := self._specs.get(package)) is not None:
                for name in names:
                    self._read(f"{package}.{name}", spec.submodule_search_locations)

    def _read(self, name: str, path: list[str] | None) -> None:
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader and (code := spec.loader.get_code(name)):
            spec.loader = _Read(spec.loader.name, spec.loader.path, code)
            self._specs[name] = spec

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As a finder in sys.meta_path."""
        return self._specs.get(name)


class _Read(SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


def _map_library() -> None:
    spec = importlib.util.find_spec("monarch")
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (library := Path(folder, f"_rust_bindings{suffix}")).exists():
                ctypes.CDLL(str(library))
                return


for _name in MONARCHS_NEEDS:
    with contextlib.suppress(Exception):  # another version of Monarch needs others
        importlib.import_module(_name)
with contextlib.suppress(OSError):  # each rank will say what is wrong with it
    _map_library()
with contextlib.suppress(Exception):  # likewise
    sys.meta_path.insert(0, ReadAhead())
