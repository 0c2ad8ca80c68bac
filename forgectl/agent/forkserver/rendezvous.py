"""The rendezvous store of one generation: a TCPStore on a socket that the agent bound before."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
from datetime import timedelta
from typing import BinaryIO

from forgectl.system.processes import die_with_parent


def serve_store(parent: int, listener: int, unguarded: int, address: str, world_size: int) -> None:
    """Serve the store on the descriptor `listener` until killed. Runs in a child of the fork server.

    If it should keep other users out and cannot, it serves anyway, since launches must work in every container, and
    writes why to the descriptor `unguarded`. It closes that descriptor once it knows.
    """
    os.setsid()
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from torch.distributed import TCPStore

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each rank has two or three connections
    sock = socket.socket(fileno=os.dup(listener))
    with open(unguarded, "wb") as report:
        guarded = _guard(sock, report) if address.startswith("127.") or address == "::1" else None
        store = TCPStore(
            address,
            sock.getsockname()[1],
            world_size,
            is_master=True,
            master_listen_fd=listener,
            wait_for_workers=False,
            use_libuv=True,
            timeout=timedelta(seconds=300),
        )
        if guarded and not guarded.wait(10.0):  # a guard that works has let in the store's own client by now
            report.write(b"this torch accepts connections in a way that cannot be guarded")
    while store:
        signal.pause()


def _guard(listener: socket.socket, report: BinaryIO) -> threading.Event | None:
    from forgectl.agent.forkserver.store_guard import guard

    try:
        return guard(listener)
    except OSError as e:
        report.write((e.strerror or str(e)).encode())
        return None
