"""Processes that we start and that outlive us."""

from __future__ import annotations

import subprocess
import threading


def let_go(process: subprocess.Popen[bytes]) -> None:
    """Treat the process as a daemon from now on: a thread reaps it, so that it leaves no zombie while we live."""
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
