"""Who reaches whom in a lab: the launching machine by ssh, and hosts each other by TCP."""

from __future__ import annotations

import shlex
import subprocess
import sys

from tests.lab.lab import Lab

DIAL = (
    "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()"
)


def ssh(lab: Lab, *arguments: str, timeout: int = 5) -> subprocess.CompletedProcess[str]:
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={timeout}"]
    return subprocess.run([*shlex.split(lab.ssh), *options, *arguments], capture_output=True, text=True, timeout=60)


def dials(lab: Lab, origin: str, address: str, port: int, timeout: float = 5) -> bool:
    return lab.run(origin, [sys.executable, "-c", DIAL, address, port, timeout]).returncode == 0
