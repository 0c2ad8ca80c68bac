"""Ranks of which one hangs, after some steps: `hang.py KIND RANK STEPS FILE`. FILE is made just before.

The function of the hang has the name of its kind: where the rank stands in it is what a verdict must name.
"""

import ctypes
import itertools
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

KIND, CULPRIT, STEPS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ME, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def step() -> None:
    """What every rank does in a step."""
    dist.all_reduce(torch.ones(4))
    dist.broadcast(torch.ones(8), 0)


def skipped() -> None:
    """Leaves out the all_reduce of its step."""
    dist.broadcast(torch.ones(8), 0)
    dist.all_reduce(torch.ones(4))


def order() -> None:
    dist.all_gather([torch.zeros(4) for _ in range(WORLD)], torch.ones(4))


def shape() -> None:
    """Goes on as all do, but with too little in each step."""
    while True:
        dist.all_reduce(torch.ones(2))
        dist.broadcast(torch.ones(8), 0)


def subgroup() -> None:
    """Takes the default group where the others take one of all ranks but their last."""
    dist.barrier()


def loop() -> None:
    for _ in itertools.count():
        pass


def gil() -> None:
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


class Stuck(Dataset):  # type: ignore[misc,type-arg,unused-ignore]
    """Its third item never comes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 2:
            time.sleep(100_000)
        return index


def loader() -> None:
    for _ in DataLoader(Stuck(), num_workers=1):
        pass


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def lock() -> None:
    held = threading.Lock()
    held.acquire()
    held.acquire()


def two_locks() -> None:
    """Waits for a thread that waits for this one."""
    mine = threading.Lock()
    mine.acquire()
    other = threading.Thread(target=mine.acquire)
    other.start()
    other.join()


def read() -> None:
    os.read(os.pipe()[0], 1)


def receive() -> None:
    here, _there = socket.socketpair()
    here.recv(1)


def empty_queue() -> None:
    queue.Queue().get()


def left() -> None:
    sys.exit(0)


def hang() -> None:
    """Hang, on the one rank."""
    partial = Path(f"{sys.argv[4]}.partial")
    partial.touch()
    partial.rename(sys.argv[4])
    globals()[KIND]()


if KIND == "left":  # of a group that is up a rank may not leave: the others' connections would break
    if ME == CULPRIT:
        hang()
    dist.init_process_group("gloo")
dist.init_process_group("gloo")
others = dist.new_group([r for r in range(WORLD) if r != WORLD - 1 or r == CULPRIT], group_desc="part")
for _ in range(STEPS):
    step()
if ME == CULPRIT:
    hang()
if KIND == "subgroup":
    dist.all_reduce(torch.ones(4), group=others)
for _ in itertools.count():
    step()
