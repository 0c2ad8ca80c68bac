"""Processes that we start and that outlive us."""

from __future__ import annotations

import subprocess
import threading


def let_go(process: subprocess.Popen[bytes]) -> None:
    """It is a daemon from here on: nobody waits for it, and while this process lives it leaves no zombie."""
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
