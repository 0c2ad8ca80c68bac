"""`again.py FOLDER TIMES [SECONDS]`: fails in its first TIMES generations (after so many seconds), then ends well.

Each generation leaves a grandchild behind that has a session of its own and ignores SIGTERM; the next one says
whether it has gone.
"""

import os
import pathlib
import signal
import sys
import time

folder, times = pathlib.Path(sys.argv[1]), int(sys.argv[2])
generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
before = folder / f"grandchild-{generation - 1}"
if before.exists():
    alive = os.path.exists(f"/proc/{before.read_text()}")
    print("the grandchild of the generation before", "lives" if alive else "is gone")
if generation >= times:
    print("done")
    sys.exit(0)
said, saying = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(saying, str(os.getpid()).encode())
        while True:
            signal.pause()
    os._exit(0)
os.wait()
(folder / f"grandchild-{generation}").write_text(os.read(said, 20).decode())
time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0)
sys.exit(20 + generation)
