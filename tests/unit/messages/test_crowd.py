"""Which connections that show no key are ended, and how a connection is looked at."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.messages.strangers import MOST, AcceptedConnections, Crowd, most_with, network_of


def ended(crowd: Crowd) -> list[int]:
    return [descriptor for descriptor, _ in crowd.surplus()]


def test_the_oldest_of_the_network_that_has_most_end() -> None:
    crowd = Crowd(4)
    for descriptor, address in enumerate(["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.3"]):
        assert not crowd.add(descriptor, (address, descriptor))
    assert not ended(crowd)
    assert crowd.add(4, ("10.0.0.3", 4))
    assert list(crowd.surplus()) == [(1, ("10.0.0.2", 1))]
    crowd.add(5, ("10.0.0.3", 5))
    crowd.add(6, ("10.0.0.3", 6))
    assert ended(crowd) == [3, 4]


def test_who_has_shown_a_key_or_has_gone_does_not_count() -> None:
    crowd = Crowd(2)
    for descriptor in range(4):
        crowd.add(descriptor, ("10.0.0.1", descriptor))
    assert crowd.remove(0) and crowd.remove(1)
    assert not ended(crowd)
    assert not crowd.remove(0) and not crowd.remove(99)


def test_who_does_not_count_is_no_member_either_until_it_has_gone() -> None:
    crowd = Crowd(1)
    crowd.add(1, ("10.0.0.1", 1))
    crowd.add(2, ("10.0.0.1", 2))
    assert ended(crowd) == [1]
    crowd.add(3, None)
    assert len(crowd) == 1
    assert [crowd.remove(d) for d in (1, 1, 3, 3)] == [True, False, True, False]


def test_a_descriptor_that_comes_again_is_another_connection() -> None:
    crowd = Crowd(1)
    crowd.add(1, ("10.0.0.1", 1))
    assert not crowd.add(1, ("10.0.0.2", 7))
    assert crowd.add(2, ("10.0.0.2", 8))
    assert list(crowd.surplus()) == [(1, ("10.0.0.2", 7))]


Event = tuple[str, int, int]
EVENTS = st.lists(st.tuples(st.sampled_from(["come", "come", "come", "go"]), st.integers(0, 40), st.integers(0, 5)))


@given(st.integers(1, 12), EVENTS)
def test_never_too_many_and_nobody_with_a_fair_share_is_hit(most: int, events: list[Event]) -> None:
    crowd, there = Crowd(most), dict[int, int]()
    for event, descriptor, host in events:
        there.pop(descriptor, None)
        if event == "go":
            crowd.remove(descriptor)
            continue
        there[descriptor] = host
        crowd.add(descriptor, (f"10.0.0.{host}", descriptor))
        for gone in ended(crowd):
            counts = Counter(there.values())
            of_its_host = [d for d, h in there.items() if h == there[gone]]
            assert gone == of_its_host[0]
            assert len(of_its_host) == max(counts.values())
            assert len(of_its_host) > most // len(counts)
            del there[gone]
        assert len(there) == len(crowd) <= most


def test_networks() -> None:
    def same(*addresses: str) -> bool:
        return len({network_of((a, k)) for k, a in enumerate(addresses)}) == 1

    assert same("10.0.0.1", "::ffff:10.0.0.1") and not same("10.0.0.1", "10.0.0.2")
    assert same("2001:db8::1", "2001:db8::ffff:1:2:3") and not same("2001:db8::1", "2001:db8:0:1::1")
    assert same("fe80::1%eth0", "fe80::2") and not same("::1", "::ffff:0.0.0.1", "0.0.0.1")


def test_how_many() -> None:
    assert [most_with(n) for n in (256, 1024, 1 << 20)] == [64, 256, MOST]


# ---------------------------------------------------------------- the connections


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(request.param) as server:
        server.bind(("::1" if request.param == socket.AF_INET6 else "127.0.0.1", 0))
        server.listen()
        yield server


def test_only_that_connection_is_ended(listening: socket.socket) -> None:
    connections = AcceptedConnections(listening.getsockname()[1])
    first, second = (socket.create_connection(listening.getsockname()[:2], 10) for _ in range(2))
    accepted, other = listening.accept()[0], listening.accept()[0]
    peer = connections.peer(accepted.fileno())
    assert peer is not None and peer == first.getsockname()
    with first, second, accepted, other:
        connections.hang_up(other.fileno(), peer)
        os.dup2(other.fileno(), accepted.fileno())
        connections.hang_up(accepted.fileno(), peer)
        other.sendall(b"there")
        assert second.recv(5) == b"there"
        connections.hang_up(other.fileno(), connections.peer(other.fileno()) or ())
        assert second.recv(5) == b"" == other.recv(5)


def test_what_is_none_of_its_connections_has_no_peer(listening: socket.socket) -> None:
    connections = AcceptedConnections(listening.getsockname()[1])
    ours, theirs = socket.socketpair()
    ends = os.pipe()
    with socket.create_connection(listening.getsockname()[:2]) as dialled, ours, theirs:
        for descriptor in (dialled.fileno(), ours.fileno(), ends[0], listening.fileno(), 9999):
            assert connections.peer(descriptor) is None
            connections.hang_up(descriptor, dialled.getpeername())
        theirs.send(b"x")
        assert ours.recv(1) == b"x"
    for end in ends:
        os.close(end)
    assert connections.peer(ends[0]) is None


def test_how_much_has_come(listening: socket.socket) -> None:
    connections = AcceptedConnections(listening.getsockname()[1])
    with socket.create_connection(listening.getsockname()[:2], 10) as near, listening.accept()[0] as accepted:
        peer = near.getsockname()
        assert connections.received(accepted.fileno(), peer) == 0
        near.sendall(bytes(5000))
        assert len(accepted.recv(5000, socket.MSG_WAITALL)) == 5000
        assert connections.received(accepted.fileno(), peer) == 5000
        assert connections.received(accepted.fileno(), accepted.getsockname()) == 0
        assert connections.received(near.fileno(), peer) == 0


def test_a_connection_that_was_looked_at_can_end(listening: socket.socket) -> None:
    connections = AcceptedConnections(listening.getsockname()[1])
    with socket.create_connection(listening.getsockname()[:2], 10) as near:
        accepted = listening.accept()[0]
        assert connections.peer(accepted.fileno())
        accepted.close()
        assert near.recv(1) == b""
