"""`say_as_nobody.py SOCKET TEXT`: root becomes another user, says TEXT there, and prints the answer; 77: kept out."""

from __future__ import annotations

import os
import socket
import sys

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    sys.exit(77)
try:
    sock.sendall(sys.argv[2].encode() + b"\n")
    print(sock.recv(1000))
except ConnectionError:
    print(b"")
