"""Stamps, then waits for a signal; with --deaf it ignores SIGTERM."""

import signal
import sys

from stamp import folder_argument, stamp


def main() -> None:
    """Stamp once the signals are as they will stay."""
    if "--deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stamp(folder_argument())
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
