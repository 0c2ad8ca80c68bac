"""`fail.py WAY…`: one rank of several fails first, in the way that is asked for, and the others of it."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable

rank = int(os.environ["RANK"])
way, first = sys.argv[1], int(sys.argv[2])


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def error_file_of(other: int) -> str:
    return os.environ["TORCHELASTIC_ERROR_FILE"].replace(f"rank-{rank}.", f"rank-{other}.")


if way == "exits-late":
    # The first to raise is the last to exit: it has much to clean up.
    if rank == first:
        atexit.register(signal.pause)
        raise ValueError("the cause")
    wait_for(lambda: os.path.exists(error_file_of(first)))
    time.sleep(0.02)  # as long as a broken connection takes to be noticed, and more than a file's clock ticks in
    raise ConnectionError("closed by peer")

if way == "cleans-up":
    # Asked to end, the others fail in their cleaning up.
    def on_term(*_: object) -> None:
        raise RuntimeError("cleaning up failed")

    signal.signal(signal.SIGTERM, on_term)
    ready = os.path.join(os.path.dirname(os.environ["TORCHELASTIC_ERROR_FILE"]), "ready")
    if rank == first:
        wait_for(lambda: os.path.exists(ready))
        os._exit(4)
    open(ready, "w").close()
    while True:
        signal.pause()

# The rest needs torch: a collective that breaks.
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if rank == first:
    if way == "raises":
        raise ValueError("the cause")
    if way == "killed":
        signal.raise_signal(signal.SIGKILL)
    if way == "at-once":
        os._exit(6)
while True:
    dist.all_reduce(total)
