"""A rank that gets stuck, in the way its argument names, before a collective that the others enter."""

import ctypes
import os
import sys
import threading

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
pair = dist.new_group([0, 1], group_desc="pair")


def stuck(how: str) -> None:
    if how == "read":
        os.read(os.pipe()[0], 1)
    if how == "loop":
        while True:
            pass
    if how == "gil":
        ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)  # goes on after a signal
    if how == "lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    if how == "order":
        dist.broadcast(torch.ones(4), 0)


for _ in range(3):
    dist.all_reduce(torch.ones(4))
if dist.get_rank() == 1:
    stuck(sys.argv[1])
dist.all_reduce(torch.ones(4))
