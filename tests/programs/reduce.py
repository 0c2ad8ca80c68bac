"""Meets the other ranks in an all_reduce, says what came of it, and stays. `reduce.py once` ends instead."""

import os
import signal
import sys

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
print(f"sum {total.item():g};", *(f"{name}={os.environ[name]}" for name in names), flush=True)
if "once" in sys.argv:
    dist.destroy_process_group()
else:
    while True:
        signal.pause()
