"""A rank of an actor: the process that Monarch asked its forwarder for."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator

NOT_ROCM = "MONARCH_SKIP_TRITON_DEEPBIND"


def run() -> None:
    """Serve Monarch until it, or the agent, ends this process. Imported after the fork: it starts threads."""
    gc.disable()  # as the fork server does while it imports
    with _told_of_rocm():
        shell = importlib.import_module("forgectl.actor.shell")
    gc.freeze()
    gc.enable()
    shell.serve()


@contextlib.contextmanager
def _told_of_rocm() -> Iterator[None]:
    """Monarch asks torch's metadata whether it is for ROCm, which takes a tenth of its import; a loaded torch knows."""
    torch = sys.modules.get("torch")
    if torch is None or torch.version.hip is not None or NOT_ROCM in os.environ:
        yield
        return
    os.environ[NOT_ROCM] = "1"
    try:
        yield
    finally:
        del os.environ[NOT_ROCM]
