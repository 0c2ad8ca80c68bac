"""A rank of an actor: the process that Monarch asked its forwarder for."""

from __future__ import annotations

import importlib


def run() -> None:
    """Serve Monarch until it, or the agent, ends this process. Imported after the fork: it starts threads."""
    importlib.import_module("forgectl.actor.engine").serve_rank()
