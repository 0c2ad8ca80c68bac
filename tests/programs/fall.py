"""Rank 0 fails after a tenth of a second, so that its mesh restarts again and again; the others stay."""

import os
import signal
import sys
import time

if os.environ["RANK"] == "0":
    time.sleep(0.1)
    sys.exit(1)
while True:
    signal.pause()
