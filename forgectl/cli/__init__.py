"""The command line: the only place that prints or exits."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Entry point of `forgectl`."""
    # Until the modules are there, nothing is begun that would have to be ended: Ctrl-C needs no traceback of imports.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else somebody had it ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    _open_standard_streams()
    from forgectl.cli import app

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, app.interrupt)
    app.run()


def _open_standard_streams() -> None:
    """Give a command that was started with some of them closed (`>&-`) empty ones, lest a socket becomes one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
