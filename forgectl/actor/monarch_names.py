"""Monarch's names on a ForgeActor, for code that was written with them: nothing here imports Monarch.

Its endpoint decorators are recognised by what they make (endpoint.py). Its `current_rank` and `current_size` read the
rank of a context of Monarch's, which has ours while an endpoint of a ForgeActor runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from forgectl.actor.value_mesh import Point, current_rank, serving

_MODULE = "monarch._src.actor.actor_mesh"


class _Context:
    """Monarch's context, but for the rank; it is made only when something else of it is asked for."""

    def __init__(self, theirs: Callable[[], Any]) -> None:
        self._theirs = theirs

    @property
    def message_rank(self) -> Point:
        return current_rank()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs(), name)


def adopt() -> None:
    """Have Monarch's `current_rank` and `current_size` tell of our ranks, where this process has imported Monarch."""
    module: Any = sys.modules.get(_MODULE)
    theirs = getattr(module, "context", None)  # not there while it is being imported
    if theirs is None or isinstance(getattr(theirs, "of_forgectl", None), _Context):
        return
    ours = _Context(theirs)

    def context() -> Any:
        return ours if serving.get() else theirs()

    context.of_forgectl = ours  # type: ignore[attr-defined]
    module.context = context
