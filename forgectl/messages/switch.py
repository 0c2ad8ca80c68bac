"""Which calls pass through a messenger, from which peer to which, over which links. Sends; does not listen or dial."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zmq

from forgectl.messages.frames import FORGET, LOST, BadFrames, address_from, lost, named, pack
from forgectl.messages.polling import Polled
from forgectl.messages.sockets import ipc

MOST_CALLS = 1 << 17
"""Calls of one caller that may be under way."""
MOST_RANKS = 8192
"""Sockets of ranks here to connect to; a run has at most half as many."""
MOST_IDLE = 4096
"""Callers, and addresses, to remember although nothing is under way."""


class NoWay(Exception):
    """A well-formed request cannot be passed on."""


class Peer:
    """One connection: from a process or to a rank here, or with another messenger. A new connection is a new peer."""

    __slots__ = ("link", "name", "socket", "under_way")

    def __init__(self, socket: Polled, name: tuple[bytes, ...], link: MessengerLink | None = None) -> None:
        """`name` is the socket's name for the peer, if the socket has several peers; else it is empty."""
        self.socket = socket
        self.link = link
        self.name = name
        self.under_way: dict[int, int] = {}  # its request numbers → ours

    def send(self, kind: int, number: int, body: list[Any], to: bytes = b"") -> None:
        """Send a request to `to`, or an answer; raises zmq.ZMQError."""
        self.socket.send((*self.name, *pack(kind, number, body, to if self.link else b"")))


class MessengerLink:
    """The link to another messenger: a socket that dials it, or a connection that it dialled."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.address = ""
        self.dealer: Polled | None = None
        self.monitor: Polled | None = None
        self.sent_hello = False
        self.dialled: Peer | None = None
        self.accepted: Peer | None = None
        self.waiting: dict[int, tuple[int, list[Any]]] = {}  # number → kind and body, of requests without a link yet

    @property
    def peer(self) -> Peer | None:
        """The connection for requests, if there is one now."""
        return self.dialled if self.address else self.accepted


class PassedCall:
    """A request that was passed on to `asked`, or waits for a link: then `asked` is None."""

    __slots__ = ("asked", "caller", "link", "number", "to")

    def __init__(self, caller: Peer, number: int, to: bytes) -> None:
        self.caller = caller
        self.number = number
        self.to = to
        self.asked: Peer | None = None
        self.link: MessengerLink | None = None


class Switch:
    """The calls under way, with their callers and targets. It uses the messenger's sockets."""

    def __init__(self, place: str, members: Iterable[str], direct: Iterable[str], folder: Path, back: Polled) -> None:
        """The switch of the machine `place`; `back` connects to the sockets of ranks in `folder`."""
        self.links = {member: MessengerLink(member) for member in members if member != place}
        self._place = place
        self._direct = frozenset(direct)
        self._folder = folder
        self._back = back
        self._calls: dict[int, PassedCall] = {}
        # A random start: answers to calls of a former messenger must not match ours.
        self._first = self._last = random.getrandbits(62)
        self._targets: dict[bytes, Peer | MessengerLink] = {}
        self._ranks: dict[bytes, Peer] = {}
        self._ended: dict[str, int] = {}

    def __str__(self) -> str:
        waiting = sum(len(link.waiting) for link in self.links.values())
        return f"calls={len(self._calls)} waiting={waiting} ranks={len(self._ranks)}"

    # ------------------------------------------------------------ requests

    def request(self, caller: Peer, kind: int, number: int, to: bytes, body: list[Any]) -> None:
        """Pass a request on; raises BadFrames, after an answer if one is possible."""
        if kind == FORGET:
            self._forget(caller, number)
            return
        if number in caller.under_way:
            raise BadFrames(f"number {number} a second time")
        try:
            if len(caller.under_way) >= MOST_CALLS:
                raise NoWay("too many calls are under way")
            target = self._targets.get(to) or self._find(to)
        except (BadFrames, NoWay) as e:
            self._answer(caller, LOST, number, [str(e).encode()])
            if isinstance(e, BadFrames):
                raise
            return
        self._last += 1
        call = self._calls[self._last] = PassedCall(caller, number, to)
        caller.under_way[number] = self._last
        self._pass_on(self._last, call, target, kind, body)

    def _find(self, to: bytes) -> Peer | MessengerLink:
        address = address_from(to)
        target: Peer | MessengerLink
        if address.place == self._place:
            target = self._ranks.get(address.name.encode()) or self._connect(address.name)
        else:
            via = address.place if address.place in self._direct else ""
            if via == self._place or via not in self._direct:
                raise NoWay(f"there is no way to {named(address.place)}")
            target = self.links[via]
        if len(self._targets) >= MOST_IDLE:
            self._targets.clear()
        self._targets[to] = target
        return target

    def _connect(self, name: str) -> Peer:
        if self._has_ended(name):
            raise NoWay(f"rank {name.rpartition('.')[2]} has ended")
        if len(self._ranks) >= MOST_RANKS:
            raise NoWay("too many ranks are called on its host")
        self._back.socket.connect_routing_id = name.encode()
        self._back.socket.connect(ipc(self._folder / name))
        self._back.touched()
        self._ranks[name.encode()] = found = Peer(self._back, (name.encode(),))
        return found

    def _pass_on(self, number: int, call: PassedCall, target: Peer | MessengerLink, kind: int, body: list[Any]) -> None:
        peer = target.peer if isinstance(target, MessengerLink) else target
        if peer is None:
            assert isinstance(target, MessengerLink)
            call.link = target
            target.waiting[number] = kind, body
            return
        call.asked = peer
        try:
            peer.send(kind, number, body, call.to)
        except zmq.ZMQError as e:
            self._not_sent(number, call, peer, kind, body, e)

    def _not_sent(self, number: int, call: PassedCall, peer: Peer, kind: int, body: list[Any], e: zmq.ZMQError) -> None:
        if e.errno == zmq.EHOSTUNREACH and peer.link is not None:  # the connection has ended; nothing was sent
            call.asked, call.link = None, peer.link
            peer.link.waiting[number] = kind, body
            self.broken(peer)
        else:
            self._lose(number, f"it could not be passed on: {e.strerror}")

    def _forget(self, caller: Peer, number: int) -> None:
        mine = caller.under_way.pop(number, None)
        if mine is None:
            return  # answered meanwhile
        call = self._calls.pop(mine)
        if call.link is not None:
            call.link.waiting.pop(mine, None)
        if call.asked is not None and call.asked.link is not None:
            with contextlib.suppress(zmq.ZMQError):
                call.asked.send(FORGET, mine, [], call.to)

    # ------------------------------------------------------------ answers

    def answer(self, peer: Peer, kind: int, number: int, body: list[Any]) -> None:
        """Pass an answer back to its caller; raises BadFrames."""
        call = self._calls.get(number)
        if call is None:
            if not self._first < number <= self._last:
                raise BadFrames(f"an answer to number {number}, which was not asked")
            return  # the call was forgotten, or lost
        if call.asked is not peer:
            raise BadFrames("an answer from a peer that was not asked")
        self._remove(number)
        self._answer(call.caller, kind, call.number, body)

    def rank_answer(self, name: bytes, kind: int, number: int, body: list[Any]) -> None:
        """The same, for an answer of a rank here."""
        if (peer := self._ranks.get(name)) is not None:
            self.answer(peer, kind, number, body)

    def _answer(self, caller: Peer, kind: int, number: int, body: list[Any]) -> None:
        try:
            caller.send(kind, number, body)
        except zmq.ZMQError as e:  # the caller is gone, or does not read
            if caller.link is not None and e.errno == zmq.EHOSTUNREACH:
                self.broken(caller)

    def _remove(self, number: int) -> PassedCall:
        call = self._calls.pop(number)
        call.caller.under_way.pop(call.number, None)
        if call.link is not None:
            call.link.waiting.pop(number, None)
        return call

    def _lose(self, number: int, why: str) -> None:
        call = self._remove(number)
        self._answer(call.caller, LOST, call.number, [why.encode()])

    # ------------------------------------------------------------ links and ranks

    def flush(self, link: MessengerLink) -> None:
        """Send the requests that waited for the link, which now has a connection."""
        waiting, link.waiting = link.waiting, {}
        for number, (kind, body) in waiting.items():
            if (call := self._calls.get(number)) is not None:
                call.link = None
                self._pass_on(number, call, link, kind, body)

    def broken(self, peer: Peer) -> None:
        """A connection with another messenger has ended: nobody knows whether its calls ran."""
        link = peer.link
        assert link is not None
        if link.dialled is peer:
            link.dialled = None
        if link.accepted is peer:
            link.accepted = None
        why = lost(link.place)
        for number in [n for n, call in self._calls.items() if call.asked is peer]:
            if number in self._calls:  # answering one may show that other connections have ended, too
                self._lose(number, why)
        for number in list(peer.under_way):
            self._forget(peer, number)

    def end(self, prefix: str, generation: int) -> None:
        """A mesh's ranks have ended, up to a generation: forget their calls. Callers learn of it in another way."""
        self._ended[prefix] = max(generation, self._ended.get(prefix, -1))
        self._targets.clear()
        for name in [n for n in self._ranks if self._has_ended(n.decode())]:
            del self._ranks[name]
            self._back.socket.disconnect(ipc(self._folder / name.decode()))
        for number in [n for n, c in self._calls.items() if self._has_ended(address_from(c.to).name)]:
            self._remove(number)

    def _has_ended(self, name: str) -> bool:
        prefix, generation, _ = name.split(".")
        return int(generation) <= self._ended.get(prefix, -1)
