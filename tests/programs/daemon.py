"""A rank that leaves a daemon behind (double fork, session of its own, deaf to SIGTERM) and stays itself.

The daemon's pid is in the log once it runs. `daemon.py exec` replaces the daemon by another program without the
environment of the run.
"""

import os
import signal
import sys
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"daemon {os.getpid()}")
    if "exec" in sys.argv:
        os.execve(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"], {})
    while True:
        time.sleep(1)
os.wait()
while True:
    signal.pause()
