"""The store of one generation: a TCPStore on a socket that was bound before anybody needed it."""

from __future__ import annotations

import os
import signal
import socket
from datetime import timedelta

from forgectl.system.processes import die_with_parent


def serve_store(parent: int, listener: int, address: str, world_size: int) -> None:
    """Be the store: serve on the descriptor `listener` until killed. Runs in a child of the fork server."""
    os.setsid()
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from torch.distributed import TCPStore

    port = socket.socket(fileno=os.dup(listener)).getsockname()[1]
    store = TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        master_listen_fd=listener,
        wait_for_workers=False,
        use_libuv=True,
        timeout=timedelta(seconds=300),
    )
    while store:
        signal.pause()
