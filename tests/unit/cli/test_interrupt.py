"""A Ctrl-C that comes where Python ignores exceptions."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import signal, sys, time
from forgectl.cli import app

class Ending:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, app.interrupt)
sys.unraisablehook = app.interrupt_again
ending = Ending()
try:
    del ending
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")

class Failing:
    def __del__(self):
        raise ValueError("shown as ever")

Failing()
"""


def test_a_ctrl_c_in_a_finalizer_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
    assert "shown as ever" in done.stderr
    assert "KeyboardInterrupt" not in done.stderr
