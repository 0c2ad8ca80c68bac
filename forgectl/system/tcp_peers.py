"""Which user is at the other end of a TCP connection within this machine: the kernel tells any process."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from forgectl.frozen import dataclass

Address: TypeAlias = tuple[bytes, int]
"""An IPv4 or IPv6 address as in a packet, and a port."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=IHHII BBBxI")  # nlmsghdr, and inet_diag_req_v2 up to the addresses
_ADDRESSES = struct.Struct("!HH16s16s")
_REST = struct.Struct("=III")  # any interface, no cookie
_ANSWER = struct.Struct("=IHHII BBxx 48x 12x II")  # nlmsghdr, and inet_diag_msg without the fields we know
_ESTABLISHED = 1


@dataclass(frozen=True)
class Found:
    """A socket of this machine, as its kernel describes it."""

    state: int
    uid: int
    inode: int


Finder: TypeAlias = Callable[[Address, Address], "Found | None"]
"""Finds the socket with this local address and this peer's address."""


class Peers:
    """Which users of this machine connect to one listener. Raises OSError if the kernel does not report it."""

    def __init__(self, listener: socket.socket, finders: tuple[Callable[[], Finder], ...] | None = None) -> None:
        own = _address(listener.getsockname())
        anybody = (bytes(len(own[0])), 0)
        for finder in finders or (Netlink, ProcNet):
            with contextlib.suppress(OSError):
                self._find = finder()
                if self._find(own, anybody):  # a usable finder finds the listener itself
                    return
        raise OSError(errno.EOPNOTSUPP, "neither netlink nor /proc/net shows who connects")

    def uid(self, accepted: socket.socket) -> int | None:
        """The uid that owns the other end of an accepted connection; None if that is not certain.

        To the kernel a closed socket belongs to uid 0, and another user may soon have its port. So the other end must
        be open, with an inode, and the connection must still be established once we know the owner.
        """
        try:
            found = self._find(_address(accepted.getpeername()), _address(accepted.getsockname()))
            if found is None or found.state != _ESTABLISHED or not found.inode:
                return None
            [state] = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return None
        return found.uid if state == _ESTABLISHED else None


class Netlink:
    """Asks for exactly one socket (sock_diag(7)), however many there are. Needs no privilege."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._socket.settimeout(1.0)  # the kernel answers while the request is sent
        self._asked = 0

    def __call__(self, own: Address, peer: Address) -> Found | None:
        """Raises OSError if there is no answer."""
        self._asked = self._asked + 1 & 0xFFFFFFFF
        family = socket.AF_INET if len(own[0]) == 4 else socket.AF_INET6
        size = _REQUEST.size + _ADDRESSES.size + _REST.size
        head = (size, _SOCK_DIAG_BY_FAMILY, 1, self._asked, 0)  # 1: NLM_F_REQUEST
        self._socket.send(
            _REQUEST.pack(*head, family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
            + _ADDRESSES.pack(own[1], peer[1], own[0], peer[0])
            + _REST.pack(0, 0xFFFFFFFF, 0xFFFFFFFF)
        )
        while True:
            answer = self._socket.recv(4096)
            _, kind, _, asked, _ = struct.unpack_from("=IHHII", answer)
            if asked != self._asked:
                continue  # a late answer to a request that timed out
            if kind != _SOCK_DIAG_BY_FAMILY:
                return None
            *_, state, uid, inode = _ANSWER.unpack_from(answer)
            return Found(state, uid, inode)


class ProcNet:
    """Reads the tables of all sockets, for sandboxes without netlink."""

    def __call__(self, own: Address, peer: Address) -> Found | None:
        """Raises OSError if a table cannot be read."""
        tables = [("tcp", own, peer), ("tcp6", _mapped(own), _mapped(peer))]
        for name, local, remote in tables if len(own[0]) == 4 else tables[1:]:
            pair = [_as_in_proc(local), _as_in_proc(remote)]
            with contextlib.suppress(FileNotFoundError), Path("/proc/net", name).open() as table:
                for fields in map(str.split, table):
                    if fields[1:3] == pair:
                        return Found(int(fields[3], 16), int(fields[7]), int(fields[9]))
        return None


def _address(name: tuple[str, int]) -> Address:
    host = name[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0]), name[1]


def _mapped(address: Address) -> Address:
    """The address as an IPv6 socket has it."""
    host, port = address
    return (bytes(10) + b"\xff\xff" + host if len(host) == 4 else host), port


def _as_in_proc(address: Address) -> str:
    host, port = address
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(host) // 4}I", host)) + f":{port:04X}"
