"""The format of messages: their frames, and the content of the first one. Pure.

    START BODY BUFFER…      START: kind, number, TO, and BODY where that is short

    caller → rank           kinds CALL, CAST, TAKEN
    rank → caller           kinds VALUE, ERROR
    process → messenger     kinds CALL, CAST, FORGET, with TO; WAY, whose TO is a place
    messenger → process     kinds VALUE, ERROR, LOST; a VALUE of JSON for WAY
    between machines        kinds CALL, CAST, FORGET, with TO; VALUE, ERROR, LOST

BODY is a pickle, each BUFFER one of its out-of-band buffers. The body of a kind + SHARED is a reference (shared.py).
The caller chooses the number; answers carry the number of their request. A CAST is answered, too, with an empty VALUE,
so that its caller knows how much is under way. A frame costs as much as a thousand bytes, and between machines each is
encrypted separately: so there are few.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from forgectl.names import socket_prefix

CALL, CAST, FORGET, WAY, TAKEN = 1, 2, 3, 4, 5
"""Requests. FORGET has no body: nobody waits for the answer to that number any more. WAY asks how the driver of the
run can dial the messenger of another machine. TAKEN: the caller has opened an answer in shared memory."""
VALUE, ERROR, LOST = 11, 12, 13
"""Answers. The body of LOST is a UTF-8 text that says why there will be no other answer."""

SHARED = 64
"""Added to a kind: the body is a reference to the sender's memory."""

LONG = 64 * 1024
"""Bytes; from this size on, a buffer is a frame of its own, and a frame is not copied."""

SHORT = 4096
"""Bytes; up to this size, a body is sent in the first frame."""

REQUESTS = frozenset({CALL, CAST, FORGET})
ANSWERS = frozenset({VALUE, ERROR, LOST})
TO_RANKS = frozenset({CALL, CAST, CALL + SHARED, CAST + SHARED, TAKEN})
TO_CALLERS = frozenset({*ANSWERS, VALUE + SHARED, ERROR + SHARED})
TO_MESSENGERS = frozenset({*REQUESTS, WAY})
BETWEEN_MESSENGERS = REQUESTS | ANSWERS

_START = struct.Struct(">HBQ")
_LONGEST_START = _START.size + 0xFFFF + SHORT
LONGEST_PLACE = 255


class BadFrames(Exception):
    """A peer sent something that is not a message."""


def pack(kind: int, number: int, body: Sequence[Any] = (), to: bytes = b"") -> tuple[Any, ...]:
    """The frames of a message."""
    start = _START.pack(len(to), kind, number) + to
    if body and len(body[0]) <= SHORT:
        return (start + body[0], *body[1:])
    return (start, *body)


def unpack(frames: Sequence[Any], kinds: frozenset[int]) -> tuple[int, int, bytes, list[Any]]:
    """(kind, number, TO, body) of a message that `pack` made, of one of these kinds; raises BadFrames."""
    if not frames:
        raise BadFrames("a message without frames")
    start = frames[0]
    if not _START.size <= len(start) <= _LONGEST_START:
        raise BadFrames(f"a first frame of {len(start)} bytes")
    length, kind, number = _START.unpack_from(start)
    if kind not in kinds:
        raise BadFrames(f"a message of kind {kind}")
    end = _START.size + length
    if len(start) < end:
        raise BadFrames(f"a first frame of {len(start)} bytes, which announces {end} or more")
    first, rest = bytes(start[end:]), frames[1:]
    return kind, number, bytes(start[_START.size : end]), [first, *rest] if first or not rest else list(rest)


class Address(NamedTuple):
    """The address of a rank: `place` is "" on the launching machine, else the name of an ssh host.

    `name` is the name of its socket in that machine's folder.
    """

    place: str
    name: str

    def to(self) -> bytes:
        """TO of a message: tells a messenger where the message should go."""
        return f"{self.place}\0{self.name}".encode()


def address_from(to: bytes) -> Address:
    """What `Address.to` wrote; raises BadFrames."""
    place, mark, name = to.decode(errors="replace").partition("\0")
    if not mark or not _is_socket_name(name) or len(place) > LONGEST_PLACE:
        raise BadFrames(f"no address: {to[:80]!r}")
    return Address(place, name)


def socket_name(mesh: str, generation: int, rank: int) -> str:
    """The name of a rank's socket: short, because socket addresses are, and different for each generation."""
    return f"{socket_prefix(mesh)}.{generation}.{rank}"


def _is_socket_name(name: str) -> bool:
    """Whether it is a name that `socket_name` makes: it becomes a part of a path."""
    mesh, *numbers = name.split(".")
    return (
        len(mesh) == 12
        and all(c in "0123456789abcdef" for c in mesh)
        and len(numbers) == 2
        and all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers)
    )


MESSENGER = "messenger"
"""The name of the messenger's socket for processes of its machine, in the same folder."""


def lost(place: str) -> str:
    """Why a call has no answer: the connection to that machine has broken."""
    return f"the connection to {named(place)} was lost while this call was under way; whether it ran is not known"


def named(place: str) -> str:
    """The machine of a place, in a text for users."""
    return f"host {place}" if place else "the launching machine"
