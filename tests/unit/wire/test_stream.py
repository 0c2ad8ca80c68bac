"""What a stream knows of its peer."""

from __future__ import annotations

import asyncio
import os
import socket

from forgectl.protocol.control import CONTROLLER_TO_CLI
from forgectl.wire.stream import Stream


def test_the_pid_of_the_peer_is_known_until_the_connection_is_over() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            stream = Stream(*await asyncio.open_unix_connection(sock=ours), CONTROLLER_TO_CLI)
            known = [stream.peer_pid]
            stream.abort()
            known.append(stream.peer_pid)
            await asyncio.sleep(0)  # its descriptor is closed by now
            known.append(stream.peer_pid)
        assert known == [os.getpid(), None, None]

    asyncio.run(main())
