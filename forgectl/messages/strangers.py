"""Who has connected from the network and shown no key yet: so many at once, and no more.

ZeroMQ takes in whoever comes and gives each HANDSHAKE_MS. Who keeps connecting would take all descriptors meanwhile: so
where too many wait, those end that came first from where most come from. Nobody crowds out others but those that share
its address, and these only if it connects MOST times while they shake hands. Whoever is hit dials again, and has lost
nothing: members send calls only once they were greeted, and then they are no strangers.

ZeroMQ also takes in a message of any length before it knows who sends it: so whoever sends more than a handshake ends.
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
"""Of the descriptors that a process may have, one in so many is for strangers."""
MOST_BYTES = 4096
"""Several times what a handshake and a hello take."""
_RECEIVED = struct.Struct("=128xQ")
"""tcpi_bytes_received in Linux's struct tcp_info."""

Peer = tuple[Any, ...]
"""Address and port, and for IPv6 what else belongs to them."""


def most_with(descriptors: int) -> int:
    """How many strangers a process may have that may have so many descriptors."""
    return min(MOST, descriptors // SHARE)


def network_of(peer: Peer) -> bytes:
    """Where it comes from: its address, of IPv6 the half that one network has as a whole."""
    address = str(peer[0]).partition("%")[0]
    if ":" not in address:
        return socket.inet_pton(socket.AF_INET, address)
    packed = socket.inet_pton(socket.AF_INET6, address)
    return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]


class Crowd:
    """Which connections are to end. It knows them by their descriptors, and has no effects."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[bytes, dict[int, Peer]] = {}  # network → descriptor → peer, in the order of their coming
        self._network: dict[int, bytes] = {}
        self._uncounted: set[int] = set()

    def __len__(self) -> int:
        return len(self._network)

    def __iter__(self) -> Iterator[tuple[int, Peer]]:
        return (one for network in self._waiting.values() for one in network.items())

    def come(self, descriptor: int, peer: Peer | None) -> bool:
        """There is one, which does not count without a peer: whether they are too many now."""
        self.go(descriptor)
        if peer is None:
            self._uncounted.add(descriptor)
        else:
            network = self._network[descriptor] = network_of(peer)
            self._waiting.setdefault(network, {})[descriptor] = peer
        return len(self) > self._most

    def go(self, descriptor: int) -> bool:
        """It has ended, or shown a key: whether it was a stranger until now."""
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
        """Those that are to end, which do not count any more."""
        while len(self) > self._most:
            descriptor, peer = next(iter(max(self._waiting.values(), key=len).items()))
            self.come(descriptor, None)
            yield descriptor, peer


class Door:
    """The connections that ZeroMQ has accepted at a port, by their descriptors, which are ZeroMQ's.

    It may have closed one, and another connection may have that number, whenever we look: so we look at a copy.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._nothing = socket.socket(socket.AF_UNIX)
        self._place = os.dup(self._nothing.fileno())  # a copy finds room even where no descriptor is left

    def peer(self, descriptor: int) -> Peer | None:
        """Who has connected; None: somebody on this machine by a Unix socket, who is let in, or nobody any more."""
        with contextlib.suppress(OSError), self._copy(descriptor) as copy:
            return self._peer(copy)
        return None

    def received(self, descriptor: int, peer: Peer) -> int:
        """How many bytes have come, if it is still that connection."""
        with contextlib.suppress(OSError, struct.error), self._copy(descriptor) as copy:
            if self._peer(copy) == peer:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
                return int(_RECEIVED.unpack(info)[0])
        return 0

    def hang_up(self, descriptor: int, peer: Peer) -> None:
        """End a connection, if it is still that one: ZeroMQ sees its end and closes it."""
        with contextlib.suppress(OSError), self._copy(descriptor) as copy:
            if self._peer(copy) == peer:
                copy.shutdown(socket.SHUT_RDWR)

    def _peer(self, copy: socket.socket) -> Peer | None:
        if copy.family == socket.AF_UNIX or copy.getsockname()[1] != self._port:
            return None  # what we have dialled has another port here
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
            os.dup2(self._nothing.fileno(), self._place, inheritable=False)  # a copy keeps its connection open


class Strangers:
    """What becomes of connections that come to a port, until they show a key or end."""

    def __init__(self, port: int, most: int) -> None:
        self._door = Door(port)
        self._crowd = Crowd(most)

    def come(self, connection: int) -> bool:
        """There is one more: whether they are too many now."""
        return self._crowd.come(connection, self._door.peer(connection))

    def go(self, connection: int) -> bool:
        """It has ended, or shown a key: whether it was a stranger until now."""
        return self._crowd.go(connection)

    def end_surplus(self) -> str:
        """Hang up on those that are too many: the address of one, if there were any."""
        hit = ""
        for connection, peer in self._crowd.surplus():
            self._door.hang_up(connection, peer)
            hit = str(peer[0])
        return hit

    def end_greedy(self) -> bool:
        """Hang up on those that have sent too much: whether any strangers are left."""
        for connection, peer in list(self._crowd):
            if self._door.received(connection, peer) > MOST_BYTES:
                self._crowd.come(connection, None)
                self._door.hang_up(connection, peer)
        return len(self._crowd) > 0
