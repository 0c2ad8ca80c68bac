"""Says that it is there, then stays until it is ended. `stay.py deaf` ignores SIGTERM."""

import os
import signal
import sys

if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(f"here: rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, generation {os.environ['TORCHELASTIC_RESTART_COUNT']}")
while True:
    signal.pause()
