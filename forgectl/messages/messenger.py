"""The messenger of a machine: passes messages between its processes and the messengers of a run's other machines.

Run as `boot.py messenger PARENT DESCRIPTOR`. The first line of standard input is a `Config` as JSON. Once it serves,
it writes `{"port": N}` to DESCRIPTOR (0: no TCP), or `{"error": …}` if it cannot. Later lines are `{"links": {place:
address}}`, all messengers that it should dial; `{"ended": [prefix, generation]}`, ranks that have ended; and
`{"describe": true}`, on which it writes counts to standard error. It ends with standard input, and dies with PARENT.

It reads only the start of messages. Each hop gives a request a number of its own and remembers where the answer goes.
A request is sent at most once: if its link breaks, it is answered LOST; a request that waits for a link is kept.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from forgectl.frozen import dataclass
from forgectl.messages.dialling import (
    FAILURES,
    HELLO,
    REDIAL_MS,
    SLOWEST_REDIAL_MS,
    CurveKeys,
    connection_in,
    dial,
    event_of,
    monitor,
    secure,
)
from forgectl.messages.frames import (
    ANSWERS,
    BETWEEN_MESSENGERS,
    MESSENGER,
    TO_MESSENGERS,
    VALUE,
    WAY,
    BadFrames,
    named,
    pack,
    unpack,
)
from forgectl.messages.polling import Poll, Polled
from forgectl.messages.sockets import Socket, bind_private, connection_of, context, key_of, new_socket, receive
from forgectl.messages.strangers import Strangers, most_with
from forgectl.messages.switch import MOST_IDLE, MessengerLink, Peer, Switch
from forgectl.names import DRIVER_KEY, NET_SOCKET
from forgectl.system.processes import die_with_parent

DOMAIN = b"forgectl"
READ_AHEAD = 256
"""Messages of a peer that ZeroMQ receives before we read them; beyond that the peer must wait."""
MOST_UNSENT = 1 << 18
"""Messages that may wait until one peer reads them."""
REPORTS = 10
"""Lines per second in the log about dropped messages."""
COMPLAINT_S = 60.0
"""Between two log lines about strangers."""
LOOK_S = 0.2
"""Between two checks of how much strangers have sent."""
LONGEST_ORDER = 16 << 20
"""Bytes of one line of standard input."""
PROBES_S = (0.02, 0.5)
"""Delays after the end of a connection; then find out whose it was. ZeroMQ's own thread must have cleaned up before."""


@dataclass(frozen=True)
class Config:
    """A messenger's configuration: protocol.Membership, and the folder of its machine's sockets."""

    place: str
    folder: str
    address: str
    secret: str
    members: dict[str, str]
    direct: tuple[str, ...]
    driver: str = ""


class Messenger:
    """The sockets, and one poll loop over them. Nothing that comes in ends it."""

    def __init__(self, config: Config, orders: bytes = b"") -> None:
        """Listen; raises OSError. `orders` was already read from standard input, after the configuration."""
        self.config = config
        self._folder = Path(config.folder)
        self._orders = b""
        self._probing = False
        self._reports = (0.0, 0)
        self._identity = CurveKeys(config.secret, config.members[config.place])
        self._loop = Poll(self._failed)
        zap = context().socket(zmq.ROUTER)
        zap.bind("inproc://zeromq.zap.01")  # before any connection can be accepted
        self._zap = Polled(self._loop, zap, self._answer_zap)
        self._front = Polled(self._loop, _bounded(zmq.ROUTER), self._from_process)
        self._back = Polled(self._loop, _bounded(zmq.ROUTER), self._from_rank)
        self._back.socket.reconnect_ivl_max = SLOWEST_REDIAL_MS // 10
        self._net = Polled(self._loop, self._new_net(), self._from_net, named=True)
        events = monitor(self._net.socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._connections = Polled(self._loop, events, self._on_connection)
        self._crowded = self._looking = False
        self._complained = -COMPLAINT_S
        self._switch = Switch(config.place, config.members, config.direct, self._folder, self._back)
        self._by_key = {config.members[place]: link for place, link in self._switch.links.items()}
        self._callers: dict[bytes, Peer] = {}
        bind_private(self._front.socket, self._folder / MESSENGER)
        self.port = self._bind_net(self._net.socket)
        self._strangers = Strangers(self.port, most_with(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        self._loop.watch(0, self._read_orders)
        self._take_orders(orders)

    # ------------------------------------------------------------ sockets

    def _new_net(self) -> Socket:
        net = _bounded(zmq.ROUTER)
        secure(net, self._identity)
        net.curve_server = True
        net.zap_domain = DOMAIN
        net.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        net.backlog = 1024
        return net

    def _bind_net(self, net: Socket) -> int:
        bind_private(net, self._folder / NET_SOCKET)
        address = self.config.address
        if not address:
            return 0
        net.ipv6 = ":" in address
        try:
            net.bind(f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*")
        except zmq.ZMQError as e:
            raise OSError(e.errno, f"cannot listen on {address}: {e.strerror}") from None
        bound = net.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return int(bound.rstrip(b"\0").rpartition(b":")[2])

    # ------------------------------------------------------------ the loop

    def serve(self) -> None:
        """Pass messages on until standard input ends."""
        self._loop.serve()

    def _failed(self, e: Exception) -> None:
        self.report(f"dropped: {e}" if isinstance(e, BadFrames) else f"dropped: {type(e).__name__}: {e}")

    def report(self, text: str) -> None:
        """Write a line to the log (standard error), unless this second had REPORTS lines already."""
        now, (since, count) = time.monotonic(), self._reports
        if now - since > 1.0:
            since, count = now, 0
        self._reports = since, count + 1
        if count < REPORTS:
            more = " (and no more in this second)" if count == REPORTS - 1 else ""
            line = f"{time.strftime('%H:%M:%S')} {text[:300]}{more}".replace("\n", " ")
            with contextlib.suppress(OSError):
                os.write(2, line.encode(errors="backslashreplace") + b"\n")

    # ------------------------------------------------------------ processes and ranks here

    def _from_process(self, frames: list[Any]) -> None:
        name = frames[0]
        kind, number, to, body = unpack(frames[1:], TO_MESSENGERS)
        if kind == WAY:
            self._front.send((name, *pack(VALUE, number, [self._way(to.decode(errors="replace"))])))
            return
        caller = self._callers.get(name)
        if caller is None:
            if len(self._callers) >= MOST_IDLE:
                self._callers = {n: c for n, c in self._callers.items() if c.under_way}
            caller = self._callers[name] = Peer(self._front, (name,))
        self._switch.request(caller, kind, number, to, body)

    def _way(self, place: str) -> bytes:
        """How this machine's driver can dial the messenger of a place, as JSON; an empty address if it cannot."""
        link = self._switch.links.get(place)
        dialled = link is not None and link.address.startswith("tcp:") and self.config.driver
        if link is None or not dialled:
            return b'{"address": ""}'
        members, secret = self.config.members, self.config.driver
        answer = {"address": link.address, "server": members[place], "secret": secret, "public": members[DRIVER_KEY]}
        return json.dumps(answer).encode()

    def _from_rank(self, frames: list[Any]) -> None:
        kind, number, _, body = unpack(frames[1:], ANSWERS)
        self._switch.rank_answer(frames[0], kind, number, body)

    # ------------------------------------------------------------ links that others dial

    def _answer_zap(self, asked: list[Any]) -> None:
        who, _, _, request, domain, _, _, mechanism, *credentials = asked
        public = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and len(credentials) == 1 else ""
        good = domain == DOMAIN and public in self._by_key
        status = (b"200", b"OK", public.encode()) if good else (b"400", b"not a key of this run", b"")
        self._zap.send((who, b"", b"1.0", request, *status, b""))

    def _from_net(self, frames: list[Any]) -> None:
        sign, name, *frames = frames
        link = self._by_key[key_of(sign)]  # the key that was checked, whatever name the peer gave itself
        peer = link.accepted
        if peer is None or peer.name[0] != name:
            if peer is not None and frames != [HELLO]:
                return  # from a connection that has ended: both sides have given up its calls
            peer = self._accept(link, name)
            self._let_in(peer, connection_of(sign))
        self._from_link(peer, frames)

    def _accept(self, link: MessengerLink, name: bytes) -> Peer:
        if link.accepted is not None:
            self._switch.broken(link.accepted)
        peer = link.accepted = Peer(self._net, (name,), link)
        self._greet(peer)
        if not link.address:
            self._switch.flush(link)
        return peer

    def _from_link(self, peer: Peer, frames: list[Any]) -> None:
        if len(frames) == 1 and frames[0] == HELLO:
            return
        kind, number, to, body = unpack(frames, BETWEEN_MESSENGERS)
        if kind in ANSWERS:
            self._switch.answer(peer, kind, number, body)
        else:
            self._switch.request(peer, kind, number, to, body)

    def _let_in(self, peer: Peer, connection: int) -> None:
        self._connections.drain_all()  # its event came before its first message
        self._strangers.remove(connection)
        self._loop.do_later(PROBES_S[-1], lambda: self._greet(peer))  # it may have ended before we read that event

    def _on_connection(self, frames: list[bytes]) -> None:
        """A connection was accepted, or has ended."""
        connection = connection_in(frames)
        if event_of(frames) == zmq.EVENT_ACCEPTED:
            if self._strangers.add(connection) and not self._crowded:
                self._crowded = True
                self._loop.do_later(0, self._hang_up_on_strangers)  # after those that have shown a key are known
            if not self._looking:
                self._looking = True
                self._loop.do_later(LOOK_S, self._look_at_strangers)
        elif not self._strangers.remove(connection):
            self._look_for_ends()

    def _hang_up_on_strangers(self) -> None:
        self._connections.drain_all()
        self._crowded = False
        hit, now = self._strangers.end_surplus(), time.monotonic()
        if hit and now - self._complained > COMPLAINT_S:
            self._complained = now
            self.report(f"too many connections show no key, most of them from {hit}: the oldest are ended")

    def _look_at_strangers(self) -> None:
        self._looking = self._strangers.end_greedy()
        if self._looking:
            self._loop.do_later(LOOK_S, self._look_at_strangers)

    def _look_for_ends(self) -> None:
        """A member's connection has ended; only sending to each shows which."""
        if not self._probing:
            self._probing = True
            for after in PROBES_S:
                self._loop.do_later(after, self._probe)

    def _probe(self) -> None:
        self._probing = False
        for peer in [link.accepted for link in self._switch.links.values() if link.accepted]:
            self._greet(peer)

    def _greet(self, peer: Peer) -> None:
        """Send hello, which also shows whether the peer is still connected."""
        if peer.link is None or peer.link.accepted is not peer:
            return
        try:
            peer.socket.send((*peer.name, HELLO))
        except zmq.ZMQError as e:
            if e.errno == zmq.EHOSTUNREACH:
                self._switch.broken(peer)

    # ------------------------------------------------------------ links that we dial

    def _dial(self, link: MessengerLink) -> None:
        dealer = None
        try:
            dealer = _bounded(zmq.DEALER)
            events = dial(dealer, self._identity, self.config.members[link.place], link.address)
        except zmq.ZMQError as e:
            if dealer is not None:
                dealer.close()
            if e.errno in (errno.EMFILE, errno.ENFILE):  # descriptors may become free
                self._loop.do_later(SLOWEST_REDIAL_MS / 1000, lambda: self._redial(link, None))
            raise
        link.monitor = Polled(self._loop, events, lambda event: self._on_event(link, event_of(event)))
        link.dealer = Polled(self._loop, dealer, lambda frames: self._from_dialled(link, frames))

    def _on_event(self, link: MessengerLink, event: zmq.Event) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            assert link.dealer is not None
            link.sent_hello = True
            link.dealer.send((HELLO,))
        elif event == zmq.EVENT_DISCONNECTED:
            sent_hello, had = link.sent_hello, link.dialled is not None
            if sent_hello:  # a hello that is read after this would belong to the ended connection
                self._hang_up(link)
            if had:
                self._dial(link)
            else:  # ZeroMQ dials again by itself, but not after a refusal, or an answer in another protocol
                dealer, pause = link.dealer, REDIAL_MS if sent_hello else SLOWEST_REDIAL_MS
                self._loop.do_later(pause / 1000, lambda: self._redial(link, dealer))
        else:
            self.report(f"{named(link.place)} at {link.address}: {FAILURES.get(event, 'no connection')}; trying again")

    def _redial(self, link: MessengerLink, dealer: Polled | None) -> None:
        if link.dealer is dealer and link.dialled is None and link.address:
            self._hang_up(link)
            self._dial(link)

    def _from_dialled(self, link: MessengerLink, frames: list[Any]) -> None:
        if link.dialled is not None:
            self._from_link(link.dialled, frames)
        elif link.dealer is not None and link.sent_hello and frames == [HELLO]:
            link.dialled = Peer(link.dealer, (), link)
            self._switch.flush(link)

    def _hang_up(self, link: MessengerLink) -> None:
        dealer, monitor, peer = link.dealer, link.monitor, link.dialled
        link.dealer = link.monitor = None
        link.sent_hello = False
        if dealer is not None and monitor is not None:
            while peer is not None and (frames := receive(dealer.socket)) is not None:  # messages from before the end
                self._loop.guarded(self._from_link, peer, frames)
            dealer.socket.disable_monitor()
            monitor.close()
            dealer.close()
        if peer is not None:
            self._switch.broken(peer)

    # ------------------------------------------------------------ orders

    def _read_orders(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)
        self._take_orders(data)

    def _take_orders(self, data: bytes) -> None:
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            self._loop.guarded(self._obey, line)
        if len(self._orders) > LONGEST_ORDER:
            self._orders = b""
            self.report("dropped an order without an end")

    def _obey(self, line: bytes) -> None:
        order = json.loads(line)
        if "links" in order:
            self._link(dict(order["links"]))
        if "ended" in order:
            prefix, generation = order["ended"]
            self._switch.end(str(prefix), int(generation))
        if "describe" in order:
            os.write(2, f"{self._switch} callers={len(self._callers)}\n".encode())

    def _link(self, addresses: dict[str, Any]) -> None:
        for place, link in self._switch.links.items():
            address = str(addresses.get(place, ""))
            if link.address == address:
                continue
            self._hang_up(link)
            link.address = address
            if address:
                self._loop.guarded(self._dial, link)
            elif link.accepted is not None:
                self._switch.flush(link)
        if unknown := addresses.keys() - self._switch.links:
            self.report(f"links to {len(unknown)} places that are not members")


def _bounded(kind: int) -> Socket:
    """A socket with limits: a peer that sends more than we can pass on must wait; we drop what a peer never reads."""
    made = new_socket(kind)
    made.rcvhwm, made.sndhwm = READ_AHEAD, MOST_UNSENT
    return made


def main(arguments: list[str]) -> None:
    """Serve until killed, or until standard input ends."""
    parent, report = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run in its own order
    os.set_inheritable(report, False)
    os.umask(0o077)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        line, orders = _first_line()
        given = json.loads(line)
        messenger = Messenger(Config(**{**given, "direct": tuple(given["direct"])}), orders)
    except Exception as e:
        _write_report(report, {"error": f"{type(e).__name__}: {e}"})
        raise
    _write_report(report, {"port": messenger.port})
    messenger.serve()


def _first_line() -> tuple[bytes, bytes]:
    """The first line of standard input, and the data that came after it."""
    data = b""
    while b"\n" not in data and (chunk := os.read(0, 1 << 16)):
        data += chunk
    line, _, rest = data.partition(b"\n")
    return line, rest


def _write_report(report: int, answer: dict[str, Any]) -> None:
    os.write(report, json.dumps(answer).encode() + b"\n")
    os.close(report)
