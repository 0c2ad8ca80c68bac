"""Variables that a script sets before it imports torch, in a rank whose fork server has imported torch already.

The script's `import torch` comes too late for them. What can still be done is done then; of the others, one line says
why they have no effect and what to do. Until then torch seems not to be imported, as in a fresh interpreter.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NATIVE = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_")
"""How variables begin that torch's libraries read as they are loaded, which Python does not see."""
PYTHONS = ("TORCH", "PYTORCH")
"""How variables begin that concern torch, of those that Python code read during the preload."""

_read: set[str] = set()


class _Noting(type(os.environ)):  # type: ignore[misc]
    """The environment while modules are preloaded: notes what they read."""

    def __getitem__(self, key: str) -> Any:
        _read.add(key)
        return super().__getitem__(key)


def note() -> None:
    """Note from here on which variables are read; `noted` ends it."""
    os.environ.__class__ = _Noting


def noted() -> None:
    """The preload is over."""
    os.environ.__class__ = _Noting.__base__


def hide_torch() -> None:
    """Have the script's first import of torch look at what the script has set before."""
    if "torch" in sys.modules:
        modules = {name: m for name, m in sys.modules.items() if name == "torch" or name.startswith("torch.")}
        for name in modules:
            del sys.modules[name]
        sys.meta_path.insert(0, _Returns(modules, _present()))


def _present() -> dict[str, str]:
    python = {name for name in _read if name.startswith(PYTHONS)}
    return {name: value for name, value in os.environ.items() if name in python or name.startswith(NATIVE)}


class _Returns:
    """Finder and loader of the torch that is there already."""

    def __init__(self, modules: dict[str, ModuleType], before: dict[str, str]) -> None:
        self._modules = modules
        self._before = before
        self._spec = modules["torch"].__spec__

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As of every finder of modules."""
        if name != "torch":
            return None
        spec = ModuleSpec(name, self, origin=self._spec.origin if self._spec else None, is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = list(self._modules[name].__path__)
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As of every loader: the module that was imported before the fork, and with it its submodules."""
        sys.meta_path.remove(self)
        sys.modules.update(self._modules)
        return self._modules["torch"]

    def exec_module(self, module: ModuleType) -> None:
        """As of every loader."""
        module.__spec__ = self._spec
        now = _present()
        changed = sorted(name for name in self._before.keys() | now.keys() if self._before.get(name) != now.get(name))
        if left := [name for name in changed if not _apply(name, now.get(name))]:
            values = " ".join(f"-e {name}={now.get(name, '')}" for name in left)
            print(  # noqa: T201
                f"forgectl: {', '.join(left)} had no effect, since torch was imported before this rank was forked: "
                f"use `forgectl run {values} …` (`env:` in a spec), or --start-method spawn",
                file=sys.stderr,
            )


def _apply(name: str, value: str | None) -> bool:
    """Have a variable its effect on the torch that is there; False if that is not possible."""
    torch: Any = sys.modules["torch"]
    try:
        if name == "OMP_NUM_THREADS" and value:
            torch.set_num_threads(int(value))
        elif name in ("TORCH_LOGS", "TORCH_LOGS_FORMAT"):
            torch._logging._internal._init_logs()
        else:
            return False
    except Exception:  # a wrong value, or another torch
        return False
    return True
