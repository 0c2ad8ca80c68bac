"""The network interface by which this host's ranks should reach those on other hosts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

import psutil

from forgectl.system.tasks import within

DIAL_SECONDS = 10.0
GLOO = "GLOO_SOCKET_IFNAME"
"""Without it gloo takes the interface of the host's own name: often 127.0.1.1, or a bridge that others cannot reach."""


def gloo_environment(address: str, given: Mapping[str, str]) -> dict[str, str]:
    """The variable that gloo needs if `address` is on another host, unless the user set it (in `given`)."""
    if GLOO in given or GLOO in os.environ:
        return {}
    name = interface_towards(address)
    return {GLOO: name} if name else {}


async def check_reachable(address: str, port: int) -> None:
    """Raise OSError unless the rendezvous of rank 0 can be dialled from here: else ranks would wait for minutes."""
    try:
        _, writer = await within(DIAL_SECONDS, asyncio.open_connection(address, port))
    except (OSError, asyncio.TimeoutError) as e:
        why = str(e) or f"no answer within {DIAL_SECONDS:g} s"
        raise OSError(f"the rendezvous of rank 0 at {address}:{port} cannot be reached from here: {why}") from None
    writer.close()


def interface_towards(address: str) -> str | None:
    """The name of the interface by which packets to `address` leave; None for loopback, or if not known."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == own for a in addresses):
            return None if own.startswith("127.") or own == "::1" else name
    return None
