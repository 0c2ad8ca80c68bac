"""Which addresses of hosts can be dialled by other hosts: listen on every candidate, and dial all at once."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterable, Sequence

import psutil

from forgectl.protocol.host_survey import DialTarget
from forgectl.system.processes import boot_id
from forgectl.wire.unix_sockets import listen_tcp

DIAL_SECONDS = 3.0
CANDIDATES = 8


def network() -> str:
    """An id shared by processes that reach each other on 127.0.0.1 as one user: a store there serves one user only."""
    try:
        return f"{boot_id()}/{os.stat('/proc/self/ns/net').st_ino}/{os.geteuid()}"  # noqa: PTH116
    except OSError:
        return f"{boot_id()}/{os.geteuid()}"


def candidates(first: Iterable[str] = ()) -> tuple[str, ...]:
    """At most CANDIDATES addresses at which others may reach this host, the likeliest first: `first`, IPv4, IPv6."""
    here = [a for addresses in psutil.net_if_addrs().values() for a in addresses]
    own = [a.address.partition("%")[0] for a in here if a.family in (socket.AF_INET, socket.AF_INET6)]
    usable = [a for a in own if not a.startswith(("127.", "fe80:", "169.254.")) and a != "::1"]
    ordered = [a for a in first if a in usable]
    ordered += sorted((a for a in usable if a not in ordered), key=lambda a: ":" in a)
    return tuple(dict.fromkeys(ordered))[:CANDIDATES]


def listen_on(addresses: Sequence[str]) -> tuple[list[socket.socket], dict[str, int]]:
    """Listeners on a free port of each address that is this host's own; and address → port."""
    listeners, ports = [], {}
    for address in addresses:
        with contextlib.suppress(OSError):
            listener = listen_tcp(address)
            listeners.append(listener)
            ports[address] = listener.getsockname()[1]
    return listeners, ports


def dial_all(targets: Sequence[DialTarget]) -> dict[str, str | None]:
    """Dial all targets at once, for at most DIAL_SECONDS; `key` → None if it answers, else why not."""
    results: dict[str, str | None] = {}
    with selectors.DefaultSelector() as waiting:
        for target in targets:
            try:
                sock = _begin(target)
            except OSError as e:
                results[target.key] = e.strerror or str(e)
                continue
            waiting.register(sock, selectors.EVENT_WRITE, target.key)
        deadline = time.monotonic() + DIAL_SECONDS
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                sock = key.fileobj  # type: ignore[assignment]
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                results[key.data] = os.strerror(error) if error else None
                waiting.unregister(sock)
                sock.close()
        for key in list(waiting.get_map().values()):
            results[key.data] = f"no answer within {DIAL_SECONDS:g} s"
            key.fileobj.close()  # type: ignore[union-attr]
    return results


def _begin(target: DialTarget) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(where)
    return sock
