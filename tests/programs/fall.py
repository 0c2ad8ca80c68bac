"""Rank 0 fails after a tenth of a second, each time in another way: its mesh restarts again and again; others stay."""

import os
import signal
import sys
import time

if os.environ["RANK"] == "0":
    time.sleep(0.1)
    sys.exit(1 + int(os.environ["TORCHELASTIC_RESTART_COUNT"]) % 100)
while True:
    signal.pause()
