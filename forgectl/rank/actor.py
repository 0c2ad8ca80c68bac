"""A rank of an actor. It imports what it needs after the fork, unless the fork server already did (ahead.py)."""

from __future__ import annotations

import gc
import importlib
from typing import Any

from forgectl.boot import ACTOR_RANK


def run() -> None:
    """Serve callers until the agent ends this process."""
    gc.disable()  # as the fork server does while it imports
    actor_rank: Any = importlib.import_module(ACTOR_RANK)
    gc.freeze()
    gc.enable()
    actor_rank.serve()
