"""A connection through ssh to the messenger of a host that cannot be dialled.

It joins a Unix socket here and one on the host, by way of the user's ssh and our relay.

Run as `boot.py tunnel PARENT DESCRIPTOR` on the launching machine. Standard input has a `Tunnel` as JSON, with `entry`:
the path where to listen. The process dies with PARENT. The messengers encrypt, once more, all that passes through.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from forgectl.errors import ForgeError, UnreachableError
from forgectl.protocol.host_survey import AgentReached, ReachAgent
from forgectl.system.processes import die_with_parent
from forgectl.transport.destination import Destination
from forgectl.transport.ssh import RelayConnection, dial
from forgectl.wire.unix_sockets import listen, peer_uid

CHUNK = 1 << 18
LONGEST_PAUSE = 5.0
"""Most seconds between two dials of a host that is not reached."""


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    parent, report = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must not end it: the run ends its processes in order
    config = json.loads(sys.stdin.buffer.readline())
    to = Destination(config["host"], config["ssh"], config["python"], config["root"])
    listener = listen(Path(config["entry"]))
    os.write(report, b"{}\n")
    os.close(report)
    pause = 0.0
    while True:
        near, _ = listener.accept()
        if peer_uid(near) != os.getuid():
            near.close()
            continue
        try:
            through(near, _reach(to, config["socket"]))
            pause = 0.0
        except ForgeError as e:
            near.close()
            print(f"{time.strftime('%H:%M:%S')} {e.message}", file=sys.stderr, flush=True)  # noqa: T201 (its log)
            pause = min(LONGEST_PAUSE, 2 * pause + 0.2)
            time.sleep(pause)


def _reach(to: Destination, path: str) -> RelayConnection:
    """A connection to the Unix socket `path` of a host; raises ForgeError."""
    relay = dial(to)
    try:
        answer = relay.ask(ReachAgent(path))
        if not isinstance(answer, AgentReached):
            raise UnreachableError(f"host {to.name}: nobody listens at {path}")
    except BaseException:
        relay.close()
        raise
    return relay


def through(near: socket.socket, far: RelayConnection) -> None:
    """Start to pass bytes both ways, in threads, until either side is gone."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                target.sendall(data)
        for end in (near, far.line.socket):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def until_over() -> None:
        back = threading.Thread(target=pass_on, args=(far.line.socket, near), daemon=True)
        back.start()
        pass_on(near, far.line.socket)
        back.join()
        near.close()
        far.close()

    far.line.socket.settimeout(None)
    near.sendall(far.line.take_buffered(1 << 24))
    threading.Thread(target=until_over, daemon=True).start()
