"""Writes COUNT numbered lines of WIDTH bytes each to PATH as a rank would: appending, one write a MiB."""

import os
import sys

path, count, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
batch = max(1, (1 << 20) // width)
for first in range(0, count, batch):
    rows = (f"{n} ".ljust(width - 1, "x") + "\n" for n in range(first, min(first + batch, count)))
    data = "".join(rows).encode()
    assert os.write(fd, data) == len(data)
