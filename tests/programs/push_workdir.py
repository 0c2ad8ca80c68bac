"""`push_workdir.py FOLDER`: syncs it to the relay at standard input, and says how many KiB this took at the most."""

from __future__ import annotations

import resource
import socket
import sys
from pathlib import Path

from forgectl.sync.scan import scan
from forgectl.sync.sender import push
from forgectl.transport.ssh import ANSWERS
from forgectl.wire.unix_sockets import Connection

line = Connection(socket.socket(fileno=0), ANSWERS)
line.receive()
push(line, scan(Path(sys.argv[1]), 1 << 40), "key", "there")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
