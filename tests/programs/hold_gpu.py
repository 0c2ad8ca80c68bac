"""Leases GPUs and holds them until its standard input ends. One JSON line for each process that asked.

hold_gpu.py DIR RUN UUID... [--uid N] [--rivals N] [--heir]
--uid: asks as this user. --rivals: so many processes ask at the same moment, as RUN-0, RUN-1, ...
--heir: another process is sent the locks, as a rank would be; the line has its pid.
"""

import argparse
import array
import json
import os
import socket
import sys
from pathlib import Path

from forgectl.hosts.gpu_leases import GpuTaken, acquire
from forgectl.model.plan import Gpu


def ask(run: str, args: argparse.Namespace) -> None:
    gpus = [Gpu(visible=str(i), uuid=uuid) for i, uuid in enumerate(args.uuids)]
    ours, theirs = socket.socketpair()
    heir = os.fork() if args.heir else 0
    if args.heir and heir == 0:
        inherit(theirs)
    try:
        lease = acquire(gpus, run=run, mesh="trainer", host="here", directory=args.directory)
    except GpuTaken as e:
        say(pid=os.getpid(), taken=e.holders, message=e.message, exit_code=e.exit_code)
    else:
        if heir:
            fds = array.array("i", lease.locks)
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            ours.recv(1)
        say(pid=os.getpid(), taken={}, heir=heir)
    sys.stdin.read()


def inherit(theirs: socket.socket) -> None:
    _, locks, _, _ = socket.recv_fds(theirs, 1, 64)
    assert locks
    theirs.send(b"x")
    sys.stdin.read()
    os._exit(0)


def say(**line: object) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")  # in one piece, whoever else writes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("run")
    parser.add_argument("uuids", nargs="+")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--rivals", type=int, default=0)
    parser.add_argument("--heir", action="store_true")
    args = parser.parse_args()
    if args.uid is not None:
        os.setgid(args.uid)
        os.setuid(args.uid)
    if not args.rivals:
        return ask(args.run, args)
    gate, start = os.pipe()
    for i in range(args.rivals):
        if os.fork() == 0:
            os.close(start)
            os.read(gate, 1)  # until the last writer of the pipe has closed it
            ask(f"{args.run}-{i}", args)
            os._exit(0)
    os.close(start)
    for _ in range(args.rivals):
        os.wait()
    return None


if __name__ == "__main__":
    main()
