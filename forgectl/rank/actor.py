"""A rank of an actor: the process that Monarch asked its forwarder for."""

from __future__ import annotations

import gc
import importlib


def run() -> None:
    """Serve Monarch until it, or the agent, ends this process. Imported after the fork: it starts threads."""
    gc.disable()  # as the fork server does while it imports
    shell = importlib.import_module("forgectl.actor.shell")
    gc.freeze()
    gc.enable()
    shell.serve()
