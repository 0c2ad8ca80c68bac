"""Joins the process group and leaves at once. As `leave.py PORT TIMES` it does so with two ranks and no launcher.

One of the two is then stopped and goes on at random moments, as on a busy machine. Prints why ranks failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.queues import SimpleQueue

import torch.distributed as dist

PAUSES = 20
PAUSE = 0.004  # seconds, at most


def leave() -> None:
    """What each rank does."""
    dist.init_process_group("gloo")
    dist.destroy_process_group()


def _rank(rank: int, port: int, failures: SimpleQueue[str]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    try:
        leave()
        failures.put("")
    except RuntimeError as e:
        failures.put(str(e).splitlines()[0])


def _pair(port: int, chance: random.Random) -> list[str]:
    forks = multiprocessing.get_context("fork")
    failures: SimpleQueue[str] = forks.SimpleQueue()
    ranks = [forks.Process(target=_rank, args=(rank, port, failures)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    slow = chance.choice(ranks).pid or 0
    for _ in range(PAUSES):
        with contextlib.suppress(ProcessLookupError):
            os.kill(slow, signal.SIGSTOP)
            time.sleep(chance.random() * PAUSE)
            os.kill(slow, signal.SIGCONT)
        time.sleep(chance.random() * PAUSE)
    ends = [failures.get() for _ in ranks]
    for rank in ranks:
        rank.join()
    return [end for end in ends if end]


if __name__ == "__main__":
    if len(sys.argv) == 1:
        leave()
    else:
        first, times = map(int, sys.argv[1:])
        for n in range(times):
            for failure in _pair(first + n, random.Random(n)):
                print(failure, flush=True)
