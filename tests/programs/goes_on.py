"""Ranks that make progress in steps, in the way that the argument names, until the file `stop` is there.

In the last step the rank of that file's content does not go on.
"""

import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

import forgectl

how = sys.argv[1]
if how == "collectives":
    dist.init_process_group("gloo")
while not Path("stop").exists():
    time.sleep(0.01)
    if how == "collectives":
        dist.all_reduce(torch.ones(1))
    if how == "heartbeats":
        forgectl.heartbeat()
    if how == "lines":
        print("a step", flush=True)
threading.Event().wait()
