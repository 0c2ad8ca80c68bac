"""Says that it is there, then stays until it is ended. `stay.py deaf` ignores SIGTERM."""

import os
import signal
import sys

if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
generation = os.environ["TORCHELASTIC_RESTART_COUNT"]
print(f"here: rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, generation {generation}", flush=True)
while True:
    signal.pause()
