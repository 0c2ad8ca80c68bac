"""The command line: the only package that prints or exits."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Entry point of `forgectl`."""
    # During the imports there is nothing to end yet, so Ctrl-C exits at once, without a traceback of imports.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else the parent process had it ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    _open_standard_streams()
    from forgectl.cli import app

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, app.interrupt)
        sys.unraisablehook = app.interrupt_again
    app.run()


def _open_standard_streams() -> None:
    """Open /dev/null for those that were closed (`>&-`), else a socket could get the number of one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
