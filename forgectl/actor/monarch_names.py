"""Makes Monarch's functions work in a ForgeActor, for code written for Monarch. Nothing here imports Monarch.

endpoint.py recognises Monarch's endpoint decorators by the classes of what they return. Monarch's `current_rank` and
`current_size` read the rank from Monarch's context; while an endpoint of a ForgeActor runs, that context has our rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from forgectl.actor.value_mesh import Point, current_rank, serving

_MODULE = "monarch._src.actor.actor_mesh"


class _Context:
    """Monarch's context with our rank; Monarch's own context is created only if another attribute is read."""

    def __init__(self, theirs: Callable[[], Any]) -> None:
        self._theirs = theirs

    @property
    def message_rank(self) -> Point:
        return current_rank()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs(), name)


def adopt() -> None:
    """If this process has imported Monarch, make its `current_rank` and `current_size` return our ranks."""
    module: Any = sys.modules.get(_MODULE)
    theirs = getattr(module, "context", None)  # absent while Monarch is being imported
    if theirs is None or isinstance(getattr(theirs, "of_forgectl", None), _Context):
        return
    ours = _Context(theirs)

    def context() -> Any:
        return ours if serving.get() else theirs()

    context.of_forgectl = ours  # type: ignore[attr-defined]
    module.context = context
