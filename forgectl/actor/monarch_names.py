"""Makes Monarch's functions work in a ForgeActor, for code written for Monarch. Nothing here imports Monarch.

endpoint.py recognises Monarch's endpoint decorators by the classes of what they return. Monarch's `current_rank` and
`current_size` read the rank from Monarch's context; while an endpoint of a ForgeActor runs, that context has our rank.
Monarch's meshes work beside ours, but they refuse to spawn a ForgeActor, whose ranks would not know their rank.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any

from forgectl.actor.value_mesh import Point, current_rank, serving


class _Context:
    """Monarch's context with our rank; Monarch's own context is created only if another attribute is read."""

    def __init__(self, theirs: Callable[[], Any]) -> None:
        self._theirs = theirs

    @property
    def message_rank(self) -> Point:
        return current_rank()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs(), name)


def _asks_for_a_rank(caller: FrameType) -> bool:
    """Whether the user asks, or one of the two functions. Monarch itself needs its own context, and hands it on."""
    of_monarch = str(caller.f_globals.get("__name__")).startswith("monarch.")
    return not of_monarch or caller.f_code.co_name in ("current_rank", "current_size")


def _lend_our_ranks(actor_mesh: Any) -> None:
    theirs = actor_mesh.context
    ours = _Context(theirs)

    def context() -> Any:
        return ours if serving.get() and _asks_for_a_rank(sys._getframe(1)) else theirs()

    actor_mesh.context = context


def _refuse_our_actors(proc_mesh: Any) -> None:
    theirs = proc_mesh.ProcMesh.spawn

    @functools.wraps(theirs)
    def spawn(self: Any, name: str, Class: type, *args: Any, **kwargs: Any) -> Any:
        if issubclass(Class, tuple(_ours)):
            raise TypeError(
                f"{Class.__qualname__} is a ForgeActor, which Monarch cannot spawn; launch it with `await "
                f"{Class.__qualname__}.options(procs=N).as_actor(…)`, or derive it from monarch.actor.Actor alone"
            )
        return theirs(self, name, Class, *args, **kwargs)

    proc_mesh.ProcMesh.spawn = spawn


_CHANGES: dict[str, Callable[[Any], None]] = {
    "monarch._src.actor.actor_mesh": _lend_our_ranks,
    "monarch._src.actor.proc_mesh": _refuse_our_actors,
}
"""Module of Monarch → what is changed in it, once it is imported."""
_done: set[ModuleType] = set()
_ours: set[type] = set()


def _change(module: ModuleType) -> None:
    if module not in _done:
        _done.add(module)
        _CHANGES[module.__name__](module)


class _Finder:
    """Finds modules as Python does, and changes those of Monarch as soon as they have been executed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None, /) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _CHANGES else None
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _change(module)

            loader.exec_module = exec_module
        return spec


def adopt(cls: type) -> None:
    """Make Monarch work beside actors of this class, whether this process has imported Monarch or will do so later."""
    _ours.add(cls)
    sys.meta_path.insert(0, _Finder)
    for name in _CHANGES.keys() & sys.modules.keys():
        _change(importlib.import_module(name))  # another thread may be at it: this waits until it is whole
