"""The format of messages: which frames there are, and what a head says. Pure.

    caller → rank         HEAD BODY BUFFER…       kinds CALL, CAST
    rank → caller         HEAD BODY BUFFER…       kinds VALUE, ERROR
    process → messenger   TO HEAD BODY BUFFER…    kinds CALL, CAST, FORGET
    messenger → process   HEAD BODY BUFFER…       kinds VALUE, ERROR, LOST
    driver → messenger    PLACE HEAD              kind WAY; the answer's body is JSON
    between machines      LINK BUFFER…            kinds CALL, CAST, FORGET, VALUE, ERROR, LOST
    on one machine        HEAD REFERENCE          kinds CALL, CAST, VALUE, ERROR, each + SHARED (shared.py)
    caller → rank         HEAD                    kind TAKEN: such an answer was received

BODY is a pickle, each BUFFER one of its out-of-band buffers. The number in a head is the caller's: answers carry the
number of their request. A CAST is answered, too, with an empty VALUE, so that its caller knows how much is under way.
LINK is TO, HEAD and a short BODY in one, as each frame is encrypted by itself; a long BODY follows it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from forgectl.names import socket_prefix

CALL, CAST, FORGET, WAY, TAKEN = 1, 2, 3, 4, 5
"""Requests. FORGET has no body: nobody waits for the answer to that number any more. WAY asks how to dial the messenger
of another machine, as the driver of the run."""
VALUE, ERROR, LOST = 11, 12, 13
"""Answers. The body of LOST is a text (UTF-8) that says why there will be no other answer."""

SHARED = 64
"""Added to a kind: the body is a reference to memory of the sender."""

LONG = 64 * 1024
"""Bytes from which on a buffer is a frame of its own, and a frame is not copied."""

SHORT = 4096
"""Bytes up to which a body is sent in one frame with what comes before it."""

_HEAD = struct.Struct(">BQ")
_LINK = struct.Struct(">HBQ")
_REQUESTS = frozenset({CALL, CAST, FORGET})
_ANSWERS = frozenset({VALUE, ERROR, LOST})
_TO_RANKS = frozenset({CALL, CAST, CALL + SHARED, CAST + SHARED, TAKEN})
_TO_CALLERS = frozenset({*_ANSWERS, VALUE + SHARED, ERROR + SHARED})
_ON_LINKS = _REQUESTS | _ANSWERS
_TO_MESSENGERS = frozenset({*_REQUESTS, WAY})
LONGEST_PLACE = 255


class BadFrames(Exception):
    """A peer sent what is no message."""


def head(kind: int, number: int) -> bytes:
    """The head of a message."""
    return _HEAD.pack(kind, number)


def answer_head(data: bytes) -> tuple[int, int]:
    """Kind and number of an answer that is passed on; raises BadFrames."""
    return _read(data, _ANSWERS)


def head_to_rank(data: bytes) -> tuple[int, int]:
    """Kind and number of what a rank gets; raises BadFrames."""
    return _read(data, _TO_RANKS)


def head_to_caller(data: bytes) -> tuple[int, int]:
    """Kind and number of what a caller gets; raises BadFrames."""
    return _read(data, _TO_CALLERS)


def head_to_messenger(data: bytes) -> tuple[int, int]:
    """Kind and number of what a messenger gets of a process of its machine; raises BadFrames."""
    return _read(data, _TO_MESSENGERS)


def for_link(kind: int, number: int, to: bytes, body: Sequence[Any]) -> tuple[Any, ...]:
    """A message as it goes to another machine; `to` is empty for an answer."""
    start = _LINK.pack(len(to), kind, number) + to
    if body and len(body[0]) <= SHORT:
        return (start + body[0], *body[1:])
    return (start, *body)


def from_link(frames: Sequence[Any]) -> tuple[int, int, bytes, list[Any]]:
    """Kind, number, TO and body of what `for_link` made; raises BadFrames."""
    start, *rest = frames
    if not _LINK.size <= len(start) < LONG:
        raise BadFrames(f"a link's first frame of {len(start)} bytes")
    length, kind, number = _LINK.unpack_from(start)
    end = _LINK.size + length
    if kind not in _ON_LINKS or len(start) < end:
        raise BadFrames(f"a message of kind {kind}, to {length} of {len(start)} bytes")
    body = start[end:]
    return kind, number, start[_LINK.size : end], [body, *rest] if body or not rest else rest


def is_answer(kind: int) -> bool:
    """Whether it is one that passes messengers."""
    return kind in _ANSWERS


def _read(data: bytes, kinds: frozenset[int]) -> tuple[int, int]:
    if len(data) != _HEAD.size:
        raise BadFrames(f"a head of {len(data)} bytes")
    kind, number = _HEAD.unpack(data)
    if kind not in kinds:
        raise BadFrames(f"a message of kind {kind}")
    return kind, number


class Address(NamedTuple):
    """Where a rank is called: `place` is "" on the launching machine, else the name of an ssh host.

    `name` is that of its socket in the folder of that machine.
    """

    place: str
    name: str

    def to(self) -> bytes:
        """The frame that tells a messenger where a message is to go."""
        return f"{self.place}\0{self.name}".encode()


def address_from(to: bytes) -> Address:
    """What `Address.to` wrote; raises BadFrames."""
    place, mark, name = to.decode(errors="replace").partition("\0")
    if not mark or not _is_socket_name(name) or len(place) > LONGEST_PLACE:
        raise BadFrames(f"no address: {to[:80]!r}")
    return Address(place, name)


def socket_name(mesh: str, generation: int, rank: int) -> str:
    """The name of a rank's socket: short, as socket addresses are, and another one for each generation."""
    return f"{socket_prefix(mesh)}.{generation}.{rank}"


def _is_socket_name(name: str) -> bool:
    """Whether it is one of ours: it becomes a part of a path."""
    mesh, *numbers = name.split(".")
    return (
        len(mesh) == 12
        and all(c in "0123456789abcdef" for c in mesh)
        and len(numbers) == 2
        and all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers)
    )


MESSENGER = "messenger"
"""The socket of a machine's messenger, in the same folder, for processes there."""


def lost(place: str) -> str:
    """Why a call to that machine has no answer, whose connection has broken."""
    return f"the connection to {named(place)} was lost while this call was under way; whether it ran is not known"


def named(place: str) -> str:
    """A machine, in a text for users."""
    return f"host {place}" if place else "the launching machine"
