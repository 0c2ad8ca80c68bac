"""The messenger of a machine: passes messages between its processes and the messengers of a run's other machines.

Run as `boot.py messenger PARENT DESCRIPTOR`. The first line of standard input is a `Config` as JSON; once it serves it
says `{"port": N}` on DESCRIPTOR (0: no TCP), or `{"error": …}`. Further lines are `{"links": {place: address}}`, all
messengers that it is to dial, and `{"ended": [prefix, generation]}`, ranks that are no more. It dies with PARENT.

    on a link     TO HEAD BODY BUFFER…    a request          "" HEAD BODY BUFFER…    an answer          "hello"

Of a message only TO and HEAD are read. Each hop has numbers of its own for the requests that it passes on, and knows
where the answers go. What waits for an answer over a link that breaks is answered LOST: nothing is sent twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from forgectl.frozen import dataclass
from forgectl.messages.frames import FORGET, LOST, MESSENGER, Address, BadFrames, address_from, answer_head, head
from forgectl.messages.frames import request_head as read_request
from forgectl.messages.sockets import bind_private, context, ipc, new_socket, receive, send
from forgectl.processes import die_with_parent

HELLO = b"hello"
NET = "messenger-net"
"""The Unix socket for links that come through ssh."""
HANDSHAKE_MS = 10_000
HEARTBEAT_MS = 10_000
"""So that nothing in between takes an idle connection for dead."""
SILENCE_MS = 60_000
TURN = 200
"""Messages of one socket that are passed on before others have their turn."""
MOST_RANKS = 8192
"""Sockets of ranks here that are connected to; a run has half as many."""
MOST_CONNECTIONS = 4096
"""Connections of members that are remembered."""
REPORTS = 10
"""Lines a second about what is dropped."""

Socket = zmq.Socket[bytes]


@dataclass(frozen=True)
class Config:
    """What a messenger is told: protocol.Membership, and the folder of its machine's sockets."""

    place: str
    folder: str
    address: str
    secret: str
    members: dict[str, str]
    direct: tuple[str, ...]


class Link:
    """The way to another machine's messenger: a socket that dials it, or the identity of one that has dialled us."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.address = ""
        self.dealer: Socket | None = None
        self.monitor: Socket | None = None
        self.is_up = False  # whether the dealer is connected: what is sent before might be sent to a successor, too
        self.identity: bytes | None = None
        self.queue: deque[tuple[int, list[Any]]] = deque()  # requests, by number, that came before the link


@dataclass(frozen=True)
class Origin:
    """Where a request came from: `socket` is `front`, `net` or a link's dealer, `identity` the peer's there."""

    socket: Socket
    identity: bytes
    number: int


@dataclass(frozen=True)
class Pending:
    """A request that was passed on: where its answer goes, and who is to give it (a link's place, or a rank here)."""

    origin: Origin
    place: str
    rank: str


class Messenger:
    """One poll loop over all sockets. No request or answer, whatever is in it, ends it."""

    def __init__(self, config: Config) -> None:
        """Listen; raises OSError."""
        self.config = config
        self._folder = Path(config.folder)
        self._keys = {public: place for place, public in config.members.items()}
        self._pending: dict[int, Pending] = {}
        self._by_origin: dict[Origin, int] = {}
        self._last = 0
        self._links = {place: Link(place) for place in config.direct}
        self._places: dict[bytes, str] = {}  # identity at `net` → whose it is
        self._ranks: set[str] = set()
        self._ended: dict[str, int] = {}
        self._reports = (0.0, 0)
        self._stdin = b""
        self._poller = zmq.Poller()
        self._on: dict[Any, Callable[[], None]] = {}
        self._zap = self._listen_for_zap()
        self._front = new_socket(zmq.ROUTER)
        self._back = new_socket(zmq.ROUTER)
        self._net = self._new_net()
        bind_private(self._front, self._folder / MESSENGER)
        self.port = self._bind_net()
        self._watch(self._front, self._drain(self._front, self._from_process))
        self._watch(self._back, self._drain(self._back, self._from_rank))
        self._watch(self._net, self._drain_net)
        self._watch(0, self._read_orders)

    # ------------------------------------------------------------ sockets

    def _listen_for_zap(self) -> Socket:
        zap = context().socket(zmq.REP)
        zap.bind("inproc://zeromq.zap.01")
        self._watch(zap, self._answer_zap)
        return zap

    def _secured(self, kind: int) -> Socket:
        made = new_socket(kind)
        made.curve_secretkey = self.config.secret.encode()
        made.curve_publickey = self.config.members[self.config.place].encode()
        made.handshake_ivl = HANDSHAKE_MS
        made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        return made

    def _new_net(self) -> Socket:
        net = self._secured(zmq.ROUTER)
        net.curve_server = True
        net.zap_domain = b"forgectl"
        net.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        net.backlog = 512
        return net

    def _bind_net(self) -> int:
        bind_private(self._net, self._folder / NET)
        address = self.config.address
        if not address:
            return 0
        self._net.ipv6 = ":" in address
        try:
            self._net.bind(f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*")
        except zmq.ZMQError as e:
            raise OSError(e.errno, f"cannot listen on {address}: {e.strerror}") from None
        return int(bytes(self._net.getsockopt(zmq.LAST_ENDPOINT)).rpartition(b":")[2])

    def _watch(self, what: Any, on_readable: Callable[[], None]) -> None:
        self._poller.register(what, zmq.POLLIN)
        self._on[what] = on_readable

    def _unwatch(self, what: Socket) -> None:
        self._poller.unregister(what)
        del self._on[what]

    def serve(self) -> None:
        """Pass messages on until standard input ends."""
        while True:
            for what, _ in self._poller.poll():
                if (do := self._on.get(what)) is not None:  # it may have been closed in this round
                    do()

    def _drain(self, source: Socket, take: Callable[[list[Any]], None]) -> Callable[[], None]:
        def drain() -> None:
            for _ in range(TURN):
                if source.closed or (frames := receive(source)) is None:
                    return
                self._guarded(take, frames)

        return drain

    def _guarded(self, take: Callable[..., None], *arguments: Any) -> None:
        """Whatever a peer has sent: at worst it is dropped, and reported."""
        try:
            take(*arguments)
        except (BadFrames, ValueError, IndexError) as e:
            self._report(f"dropped: {e}")
        except zmq.ZMQError as e:
            self._report(f"a message could not be passed on: {e}")

    def _report(self, text: str) -> None:
        """A line in the log, if there were not too many in this second."""
        now, (since, count) = time.monotonic(), self._reports
        if now - since > 1.0:
            since, count = now, 0
        self._reports = since, count + 1
        if count < REPORTS:
            with contextlib.suppress(OSError):
                line = f"{time.strftime('%H:%M:%S')} {text[:300]}\n"
                os.write(2, line.encode(errors="backslashreplace"))

    # ------------------------------------------------------------ who is let in

    def _answer_zap(self) -> None:
        _, request, domain, *_, mechanism, key = self._zap.recv_multipart()
        public = z85.encode(key).decode() if mechanism == b"CURVE" and len(key) == 32 else ""
        good = domain == b"forgectl" and public in self._keys
        status = (b"200", b"OK", public.encode()) if good else (b"400", b"not a key of this run", b"")
        self._zap.send_multipart([b"1.0", request, *status, b""])

    def _drain_net(self) -> None:
        for _ in range(TURN):
            try:
                first = self._net.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            identity, more = first.bytes, first.more
            frames = (receive(self._net) or []) if more else []
            if self._place_of(identity, first) is not None:
                self._guarded(self._from_link, self._net, identity, frames)

    def _place_of(self, identity: bytes, frame: zmq.Frame) -> str | None:
        """Whose connection it is, by the key that it was let in with, whatever it says of itself."""
        place = self._places.get(identity)
        if place is None:
            try:
                place = self._keys[str(frame.get("User-Id"))]
            except (KeyError, zmq.ZMQError):
                self._report("a message of nobody was dropped")
                return None
            if identity[:1] != b"\0":  # ZeroMQ's own begin so, and none is given twice
                self._report(f"{self._name(place)} calls itself {identity!r}: dropped")
                return None
            self._places[identity] = place
            if len(self._places) > MOST_CONNECTIONS:  # the oldest has ended long ago
                del self._places[next(iter(self._places))]
            self._adopt(place, identity)
        return place

    def _adopt(self, place: str, identity: bytes) -> None:
        """A machine that dials us has a new connection: from now on it is reached by that."""
        link = self._links.get(place)
        if link is not None and not link.address:
            self._lose(link)
            link.identity = identity
            self._flush(link)

    # ------------------------------------------------------------ requests

    def _from_process(self, frames: list[Any]) -> None:
        caller, to, first, *body = frames
        self._take_request(self._front, caller, to, first, body)

    def _from_link(self, source: Socket, identity: bytes, frames: list[Any]) -> None:
        if frames == [HELLO]:
            return
        to, first, *body = frames
        if to == b"":
            self._take_answer(first, body)
        else:
            self._take_request(source, identity, to, first, body)

    def _take_request(self, source: Socket, identity: bytes, to: Any, first: Any, body: list[Any]) -> None:
        kind, number = read_request(bytes(first))
        origin = Origin(source, identity, number)
        if kind == FORGET:
            self._forget(origin, bytes(to))
            return
        try:
            address = address_from(bytes(to))
            if not body:
                raise BadFrames("a request without a body")
        except BadFrames as e:
            self._answer(origin, [head(LOST, number), str(e).encode()])
            raise
        self._last += 1
        mine = self._last
        asked = self._route(address)
        if asked is None:
            self._answer(origin, [head(LOST, number), self._why_not(address).encode()])
            return
        self._pending[mine] = Pending(origin, *asked)
        self._by_origin[origin] = mine
        if asked[1]:
            send(self._back, [asked[1].encode(), head(kind, mine), *body])
        else:
            self._send_over(self._links[asked[0]], mine, [to, head(kind, mine), *body])

    def _route(self, to: Address) -> tuple[str, str] | None:
        """Who is to be asked: (a link's place, "") or ("", a rank here); None where nobody can be."""
        if to.place == self.config.place:
            return ("", to.name) if self._connect(to.name) else None
        place = to.place if to.place in self._links else ""
        return (place, "") if place in self._links else None

    def _connect(self, name: str) -> bool:
        if name in self._ranks:
            return True
        if self._has_ended(name) or len(self._ranks) >= MOST_RANKS:
            return False
        self._ranks.add(name)
        self._back.connect_routing_id = name.encode()
        self._back.connect(ipc(self._folder / name))
        return True

    def _has_ended(self, name: str) -> bool:
        prefix, generation, _ = name.split(".")
        return int(generation) <= self._ended.get(prefix, -1)

    def _why_not(self, to: Address) -> str:
        if to.place == self.config.place:
            return "the rank has ended" if self._has_ended(to.name) else "too many ranks are called on its host"
        return f"there is no way to {self._name(to.place)}"

    def _forget(self, origin: Origin, to: bytes) -> None:
        mine = self._by_origin.pop(origin, None)
        if mine is None:
            return  # answered meanwhile
        pending = self._pending.pop(mine)
        if not pending.rank:
            self._send_over(self._links[pending.place], 0, [to, head(FORGET, mine)])

    # ------------------------------------------------------------ links

    def _send_over(self, link: Link, number: int, frames: list[Any]) -> None:
        """Send over a link, or as soon as there is one; `number` is 0 for what may be left out then."""
        if link.dealer is not None and link.is_up:
            send(link.dealer, frames)
        elif link.identity is not None:
            try:
                send(self._net, [link.identity, *frames])
            except zmq.ZMQError:  # it has hung up
                link.identity = None
                self._lose(link)
        elif number:
            link.queue.append((number, frames))

    def _flush(self, link: Link) -> None:
        queue, link.queue = link.queue, deque()
        for number, frames in queue:
            if number in self._pending:
                self._send_over(link, number, frames)

    def _lose(self, link: Link) -> None:
        """The connection is gone: nobody knows what became of requests that it has not answered."""
        queued = {number for number, _ in link.queue}
        why = f"the connection to {self._name(link.place)} was lost; whether the call ran is not known"
        asked = [n for n, p in self._pending.items() if not p.rank and p.place == link.place and n not in queued]
        for number in asked:
            pending = self._take_off(number)
            self._answer(pending.origin, [head(LOST, pending.origin.number), why.encode()])

    def _dial(self, link: Link) -> None:
        dealer = link.dealer = self._secured(zmq.DEALER)
        dealer.curve_serverkey = self.config.members[link.place].encode()
        dealer.ipv6 = "[" in link.address
        link.monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._watch(link.monitor, lambda: self._on_event(link, dealer))
        self._watch(dealer, self._drain(dealer, lambda frames: self._from_link(dealer, b"", frames)))
        dealer.connect(link.address)

    def _hang_up(self, link: Link) -> None:
        assert link.dealer is not None and link.monitor is not None
        self._unwatch(link.dealer)
        self._unwatch(link.monitor)
        link.dealer.disable_monitor()
        link.monitor.close()
        link.dealer.close()
        link.dealer = link.monitor = None
        link.is_up = False
        self._lose(link)

    def _on_event(self, link: Link, dealer: Socket) -> None:
        while link.dealer is dealer and link.monitor is not None:
            try:
                event = parse_monitor_message(link.monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                link.is_up = True
                send(dealer, [HELLO])
                self._flush(link)
            else:  # what ZeroMQ has not sent yet must not be sent by its next connection
                self._hang_up(link)
                self._dial(link)

    # ------------------------------------------------------------ answers

    def _from_rank(self, frames: list[Any]) -> None:
        _, first, *body = frames
        self._take_answer(first, body)

    def _take_answer(self, first: Any, body: list[Any]) -> None:
        kind, number = answer_head(bytes(first))
        if number not in self._pending:
            if number > self._last:
                raise BadFrames(f"an answer to number {number}, which was not asked")
            return  # it was forgotten, or lost
        origin = self._take_off(number).origin
        self._answer(origin, [head(kind, origin.number), *body])

    def _take_off(self, number: int) -> Pending:
        pending = self._pending.pop(number)
        self._by_origin.pop(pending.origin, None)
        return pending

    def _answer(self, origin: Origin, frames: list[Any]) -> None:
        if origin.socket.closed:
            return
        mark = [] if origin.socket is self._front else [b""]
        identity = [origin.identity] if origin.identity else []
        try:
            send(origin.socket, [*identity, *mark, *frames])
        except zmq.ZMQError:
            pass  # whoever asked has ended

    # ------------------------------------------------------------ orders

    def _read_orders(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)
        *lines, self._stdin = (self._stdin + data).split(b"\n")
        for line in lines:
            try:
                self._obey(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, zmq.ZMQError) as e:
                self._report(f"an order that cannot be carried out: {e!r}")

    def _obey(self, order: dict[str, Any]) -> None:
        if not isinstance(order, dict):
            raise ValueError("not an object")
        if "links" in order:
            self._link(dict(order["links"]))
        if "ended" in order:
            prefix, generation = order["ended"]
            self._end(str(prefix), int(generation))

    def _link(self, addresses: dict[str, str]) -> None:
        for place, link in self._links.items():
            address = addresses.get(place, "")
            if link.address == address:
                continue
            if link.dealer is not None:
                self._hang_up(link)
            link.address = address
            if address:
                self._dial(link)

    def _end(self, prefix: str, generation: int) -> None:
        self._ended[prefix] = max(generation, self._ended.get(prefix, -1))
        for name in [n for n in self._ranks if self._has_ended(n)]:
            self._ranks.discard(name)
            self._back.disconnect(ipc(self._folder / name))
        for number in [n for n, p in self._pending.items() if p.rank and self._has_ended(p.rank)]:
            self._take_off(number)  # its caller learns of it by other ways

    @staticmethod
    def _name(place: str) -> str:
        return f"host {place}" if place else "the launching machine"


def main(arguments: list[str]) -> None:
    """Serve until killed, or until standard input ends."""
    parent, report = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends in its own order
    os.set_inheritable(report, False)
    os.umask(0o077)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        told = json.loads(_first_line())
        messenger = Messenger(Config(**{**told, "direct": tuple(told["direct"])}))
    except Exception as e:
        _say(report, {"error": f"{type(e).__name__}: {e}"})
        raise
    _say(report, {"port": messenger.port})
    messenger.serve()
    sys.exit(0)


def _first_line() -> bytes:
    """And not a byte more: what follows is for the poll loop."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line


def _say(report: int, answer: dict[str, Any]) -> None:
    os.write(report, json.dumps(answer).encode() + b"\n")
    os.close(report)
