"""Connections between machines: each side proves by CURVE that it belongs to the run.

    on a connection     TO HEAD BODY BUFFER…    a request          "" HEAD BODY BUFFER…    an answer          "hello"

The side that dialled sends hello first, and more only after it got a hello back: before that the other side may end
the connection, as one of too many (strangers.py), and nothing is lost. Later hellos mean nothing.
Of two connections with the same key only the later one counts.
"""

from __future__ import annotations

import itertools
import struct

import zmq

from forgectl.frozen import dataclass
from forgectl.messages.sockets import Socket, new_socket

HELLO = b"hello"
HANDSHAKE_MS = 10_000
REDIAL_MS, SLOWEST_REDIAL_MS = 100, 1000
HEARTBEAT_MS = 10_000
"""So that no device in between ends an idle connection."""
SILENCE_MS = 600_000
"""ZeroMQ counts only whole frames as signs of life, so one frame may take at most this long."""
GONE_S = 60
"""Time after which TCP gives up a machine that does not answer, whatever is under way."""
FAILURES = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it hung up",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it is no messenger of this run",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not accept our key",
}
_EVENT = struct.Struct("=hi")
_numbers = itertools.count()


@dataclass(frozen=True)
class CurveKeys:
    """A pair of CURVE keys, as Z85 text."""

    secret: str
    public: str


def secure(made: Socket, identity: CurveKeys) -> None:
    """Set the keys of a socket, and make it give up on machines that are gone."""
    made.curve_secretkey = identity.secret.encode()
    made.curve_publickey = identity.public.encode()
    made.handshake_ivl = HANDSHAKE_MS
    made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
    made.tcp_keepalive = 1
    made.tcp_keepalive_idle = made.tcp_keepalive_intvl = GONE_S // 6
    made.tcp_keepalive_cnt = 5
    made.setsockopt(zmq.TCP_MAXRT, GONE_S * 1000)


def dial(dealer: Socket, identity: CurveKeys, server: str, address: str) -> Socket:
    """Connect to the messenger whose public key is `server`; returns the connection's monitor (see `event_of`)."""
    secure(dealer, identity)
    dealer.curve_serverkey = server.encode()
    dealer.ipv6 = "[" in address
    dealer.immediate = True  # a broken connection drops its unsent messages: the next one must not send them
    dealer.reconnect_ivl, dealer.reconnect_ivl_max = REDIAL_MS, SLOWEST_REDIAL_MS
    events = monitor(dealer, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(FAILURES))
    dealer.connect(address)
    return events


def monitor(watched: Socket, events: int) -> Socket:
    """A socket that reports these events of the connections of another socket."""
    address = f"inproc://monitor-{next(_numbers)}"
    watched.monitor(address, events)
    reports = new_socket(zmq.PAIR)
    reports.connect(address)
    return reports


def event_of(frames: list[bytes]) -> zmq.Event:
    """The event that a monitor reports."""
    return zmq.Event(_EVENT.unpack(frames[0])[0])


def connection_in(frames: list[bytes]) -> int:
    """The descriptor of the connection that was accepted, or has ended."""
    descriptor: int = _EVENT.unpack(frames[0])[1]
    return descriptor
