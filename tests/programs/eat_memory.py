"""`eat_memory.py CGROUP_PROCS`: joins, says its pid, and on an "x" from standard input eats up to 512 MiB."""

import os
import sys

with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
print(os.getpid(), flush=True)
if sys.stdin.buffer.read(1) == b"x":
    eaten = [bytearray(os.urandom(1 << 20)) for _ in range(512)]
