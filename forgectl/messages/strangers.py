"""Strangers: connections from the network that have shown no key yet. Their number is limited.

ZeroMQ accepts every connection and gives each HANDSHAKE_MS. A client that keeps connecting would take all descriptors
meanwhile. So if too many wait, the oldest connections from the network with the most of them are ended. A client can
displace only others with its address, and only if it connects MOST times during their handshake. A member that is hit
dials again and has lost nothing: members send calls only after they got a hello, and then they are not strangers.

ZeroMQ also receives a message of any length before it knows its sender: so a stranger that sends more than a handshake
is ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

MOST = 2048
SHARE = 4
"""One in SHARE of a process's descriptors is for strangers."""
MOST_BYTES = 4096
"""Several times the bytes of a handshake and a hello."""
_RECEIVED = struct.Struct("=128xQ")
"""tcpi_bytes_received in Linux's struct tcp_info."""

Peer = tuple[Any, ...]
"""Address and port; for IPv6 also flow information and scope."""


def most_with(descriptors: int) -> int:
    """How many strangers a process may have, given its limit of descriptors."""
    return min(MOST, descriptors // SHARE)


def network_of(peer: Peer) -> bytes:
    """The network of a peer: its IPv4 address, or the first half (/64) of its IPv6 address."""
    address = str(peer[0]).partition("%")[0]
    if ":" not in address:
        return socket.inet_pton(socket.AF_INET, address)
    packed = socket.inet_pton(socket.AF_INET6, address)
    return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]


class Crowd:
    """Which connections should be ended. It knows them by their descriptors, and has no effects."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[bytes, dict[int, Peer]] = {}  # network → descriptor → peer, oldest first
        self._network: dict[int, bytes] = {}
        self._uncounted: set[int] = set()

    def __len__(self) -> int:
        return len(self._network)

    def __iter__(self) -> Iterator[tuple[int, Peer]]:
        return (one for network in self._waiting.values() for one in network.items())

    def add(self, descriptor: int, peer: Peer | None) -> bool:
        """Add a connection, which does not count if `peer` is None; returns whether there are too many now."""
        self.remove(descriptor)
        if peer is None:
            self._uncounted.add(descriptor)
        else:
            network = self._network[descriptor] = network_of(peer)
            self._waiting.setdefault(network, {})[descriptor] = peer
        return len(self) > self._most

    def remove(self, descriptor: int) -> bool:
        """Remove a connection that has ended, or shown a key; returns whether it was a stranger."""
        if descriptor in self._uncounted:
            self._uncounted.remove(descriptor)
            return True
        network = self._network.pop(descriptor, None)
        if network is None:
            return False
        del self._waiting[network][descriptor]
        if not self._waiting[network]:
            del self._waiting[network]
        return True

    def surplus(self) -> Iterator[tuple[int, Peer]]:
        """The connections to end; they do not count any more."""
        while len(self) > self._most:
            descriptor, peer = next(iter(max(self._waiting.values(), key=len).items()))
            self.add(descriptor, None)
            yield descriptor, peer


class AcceptedConnections:
    """The connections that ZeroMQ has accepted at a port, by their descriptors, which are ZeroMQ's.

    ZeroMQ may close one at any moment, and another connection may get its number: so we work on a copy.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._nothing = socket.socket(socket.AF_UNIX)
        self._place = os.dup(self._nothing.fileno())  # reserved: a copy needs a descriptor even when none is left

    def peer(self, descriptor: int) -> Peer | None:
        """The peer; None for a Unix socket, whose processes of this machine are trusted, or if it has ended."""
        with contextlib.suppress(OSError), self._copy(descriptor) as copy:
            return self._peer(copy)
        return None

    def received(self, descriptor: int, peer: Peer) -> int:
        """How many bytes were received, or 0 if the descriptor now has another connection."""
        with contextlib.suppress(OSError, struct.error), self._copy(descriptor) as copy:
            if self._peer(copy) == peer:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
                return int(_RECEIVED.unpack(info)[0])
        return 0

    def hang_up(self, descriptor: int, peer: Peer) -> None:
        """End a connection, unless the descriptor now has another one: ZeroMQ sees its end and closes it."""
        with contextlib.suppress(OSError), self._copy(descriptor) as copy:
            if self._peer(copy) == peer:
                copy.shutdown(socket.SHUT_RDWR)

    def _peer(self, copy: socket.socket) -> Peer | None:
        if copy.family == socket.AF_UNIX or copy.getsockname()[1] != self._port:
            return None  # connections that we dialled have another local port
        peer: Peer = copy.getpeername()
        return peer

    @contextlib.contextmanager
    def _copy(self, descriptor: int) -> Iterator[socket.socket]:
        os.dup2(descriptor, self._place, inheritable=False)
        try:
            copy = socket.socket(fileno=self._place)
            try:
                yield copy
            finally:
                copy.detach()
        finally:
            os.dup2(self._nothing.fileno(), self._place, inheritable=False)  # a copy would keep its connection open


class Strangers:
    """Limits the connections to a port, until they show a key or end."""

    def __init__(self, port: int, most: int) -> None:
        self._accepted = AcceptedConnections(port)
        self._crowd = Crowd(most)

    def add(self, connection: int) -> bool:
        """Add a connection; returns whether there are too many now."""
        return self._crowd.add(connection, self._accepted.peer(connection))

    def remove(self, connection: int) -> bool:
        """Remove a connection that has ended, or shown a key; returns whether it was a stranger."""
        return self._crowd.remove(connection)

    def end_surplus(self) -> str:
        """End the connections that are too many; returns the address of one, or ""."""
        hit = ""
        for connection, peer in self._crowd.surplus():
            self._accepted.hang_up(connection, peer)
            hit = str(peer[0])
        return hit

    def end_greedy(self) -> bool:
        """End the connections that have sent too much; returns whether any strangers are left."""
        for connection, peer in list(self._crowd):
            if self._accepted.received(connection, peer) > MOST_BYTES:
                self._crowd.add(connection, None)
                self._accepted.hang_up(connection, peer)
        return len(self._crowd) > 0
