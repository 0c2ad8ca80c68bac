"""Who is told to be at the other end of a connection, by netlink and by /proc: its owner, or nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from forgectl.system.tcp_peers import Finder, Netlink, Peers, ProcNet
from tests.process.other_user import NOBODY

ADDRESSES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


@pytest.fixture(params=[Netlink, ProcNet])
def finder(request: pytest.FixtureRequest) -> Callable[[], Finder]:
    found: Callable[[], Finder] = request.param
    return found


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(60)
        yield sock


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Sockets that are made in this block are nobody's."""
    if os.geteuid() != 0:
        pytest.fail("a socket of another user takes root")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def dial(listener: socket.socket, port: int = 0) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("127.0.0.1", port))
    client.connect(listener.getsockname())
    return client


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_owner_of_a_connection_is_told(finder: Callable[[], Finder], address: str) -> None:
    with socket.create_server((address, 0), family=ADDRESSES[address]) as listener:
        peers = Peers(listener, (finder,))
        for _ in range(2):
            with socket.create_connection(listener.getsockname()[:2]) as client, listener.accept()[0] as accepted:
                assert peers.uid(accepted) == os.geteuid()
                assert peers.uid(client) == os.geteuid()  # seen from the other side


def test_another_user_is_told(finder: Callable[[], Finder], listener: socket.socket) -> None:
    peers = Peers(listener, (finder,))
    with as_nobody():
        client = dial(listener)
    with client, listener.accept()[0] as accepted:
        assert peers.uid(accepted) == NOBODY


def test_a_client_of_ipv6_that_dials_an_ipv4_listener(finder: Callable[[], Finder], listener: socket.socket) -> None:
    peers = Peers(listener, (finder,))
    with as_nobody():
        client = socket.socket(socket.AF_INET6)
    client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
    with client, listener.accept()[0] as accepted:
        assert peers.uid(accepted) == NOBODY


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_who_has_left_is_nobody_and_not_root(finder: Callable[[], Finder], listener: socket.socket, how: str) -> None:
    """The kernel gives a socket that its owner has closed to uid 0."""
    peers = Peers(listener, (finder,))
    with as_nobody():
        client = dial(listener)
    client.sendall(b"take this")
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half closed":
        client.shutdown(socket.SHUT_WR)
    else:
        client.close()
    with client, listener.accept()[0] as accepted:
        assert peers.uid(accepted) is None


def test_a_later_owner_of_the_same_port_does_not_speak_for_the_earlier(
    finder: Callable[[], Finder], listener: socket.socket
) -> None:
    peers = Peers(listener, (finder,))
    with as_nobody():
        theirs = dial(listener)
    theirs.sendall(b"take this")
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    port = theirs.getsockname()[1]
    theirs.close()
    with dial(listener, port), listener.accept()[0] as first, listener.accept()[0] as second:
        assert first.recv(100) == b"take this"  # it can still be read, and must not be
        assert (peers.uid(first), peers.uid(second)) == (None, os.geteuid())


def test_a_socket_that_there_is_not(finder: Callable[[], Finder], listener: socket.socket) -> None:
    find = finder()
    own = (socket.inet_aton("127.0.0.1"), listener.getsockname()[1])
    found = find(own, (bytes(4), 0))
    assert found and (found.uid, found.state) == (os.geteuid(), 10)  # 10: it listens
    listener.close()
    assert find(own, (bytes(4), 0)) is None


def test_where_nothing_tells_that_is_said_and_where_one_way_fails_the_next_is_taken(listener: socket.socket) -> None:
    def forbidden() -> Finder:
        raise PermissionError

    def blind() -> Finder:
        return lambda own, peer: None

    for finders in [(forbidden,), (blind, forbidden)]:
        with pytest.raises(OSError, match="shows who connects"):
            Peers(listener, finders)
    peers = Peers(listener, (forbidden, blind, ProcNet))
    with dial(listener), listener.accept()[0] as accepted:
        assert peers.uid(accepted) == os.geteuid()
