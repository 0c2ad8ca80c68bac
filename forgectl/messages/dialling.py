"""Connections between machines: each side shows by CURVE that it belongs to the run.

    on a connection     TO HEAD BODY BUFFER…    a request          "" HEAD BODY BUFFER…    an answer          "hello"

Whoever has dialled says hello first, and more only once it was greeted in turn: until then it may be hung up on, as one
of too many (strangers.py), and nothing is lost. Later hellos mean nothing.
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
"""So that nothing in between takes an idle connection for dead."""
SILENCE_MS = 600_000
"""ZeroMQ counts only whole frames as signs of life, so this is the longest that one frame may take."""
GONE_S = 60
"""After which TCP gives up a machine that answers nothing, whatever is under way."""
FAILURES = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it hung up",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it is no messenger of this run",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not accept our key",
}
_EVENT = struct.Struct("=hi")
_numbers = itertools.count()


@dataclass(frozen=True)
class CurveKeys:
    """A pair of CURVE keys (Z85)."""

    secret: str
    public: str


def secure(made: Socket, identity: CurveKeys) -> None:
    """Have a socket show who it is, and give up on machines that are gone."""
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
    """Connect to the messenger whose public key is `server`: a socket that tells what becomes of it (`event_of`)."""
    secure(dealer, identity)
    dealer.curve_serverkey = server.encode()
    dealer.ipv6 = "[" in address
    dealer.immediate = True  # with a connection goes all that it has not sent: the next one must not send it
    dealer.reconnect_ivl, dealer.reconnect_ivl_max = REDIAL_MS, SLOWEST_REDIAL_MS
    told = monitor(dealer, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(FAILURES))
    dealer.connect(address)
    return told


def monitor(watched: Socket, events: int) -> Socket:
    """A socket that tells what becomes of the connections of another one."""
    where = f"inproc://monitor-{next(_numbers)}"
    watched.monitor(where, events)
    told = new_socket(zmq.PAIR)
    told.connect(where)
    return told


def event_of(frames: list[bytes]) -> zmq.Event:
    """Which event a monitor tells of."""
    return zmq.Event(_EVENT.unpack(frames[0])[0])


def connection_in(frames: list[bytes]) -> int:
    """The descriptor of the connection that has come, or gone."""
    descriptor: int = _EVENT.unpack(frames[0])[1]
    return descriptor
