"""Joins a cgroup, says its pid, and on a byte from standard input takes memory until it is killed: `eat_memory.py PROCS`."""

import os
import sys

with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
print(os.getpid(), flush=True)
if sys.stdin.buffer.read(1) == b"x":
    eaten = [bytearray(os.urandom(1 << 20)) for _ in range(512)]
