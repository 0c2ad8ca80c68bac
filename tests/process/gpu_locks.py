"""What tests see of the locks that stand for leases of GPUs."""

from __future__ import annotations

import fcntl
from pathlib import Path


def is_free(lock: Path) -> bool:
    """Whether nobody holds a lock."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
