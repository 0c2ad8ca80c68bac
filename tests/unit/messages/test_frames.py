"""The format of messages: what is written is read, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.messages import frames
from forgectl.messages.frames import Address, BadFrames

NUMBERS = st.integers(0, 2**64 - 1)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)


KINDS = st.sampled_from(sorted(frames.BETWEEN_MESSENGERS))
BODIES = st.lists(st.binary(min_size=1, max_size=frames.SHORT + 10), min_size=1, max_size=3)


@given(KINDS, NUMBERS, st.binary(max_size=400), BODIES)
def test_a_message_is_read_as_it_was_written(kind: int, number: int, to: bytes, body: list[bytes]) -> None:
    written = frames.pack(kind, number, body, to)
    assert frames.unpack(written, frames.BETWEEN_MESSENGERS) == (kind, number, to, body)
    assert len(written) == len(body) + (len(body[0]) > frames.SHORT)


@given(KINDS, NUMBERS)
def test_requests_and_answers_are_not_taken_for_each_other(kind: int, number: int) -> None:
    other = frames.REQUESTS if kind in frames.ANSWERS else frames.ANSWERS
    with pytest.raises(BadFrames, match=f"kind {kind}"):
        frames.unpack(frames.pack(kind, number), other)


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_garbage_is_refused_or_a_message(data: list[bytes]) -> None:
    try:
        kind, number, to, body = frames.unpack(data, frames.BETWEEN_MESSENGERS)
    except BadFrames:
        return
    assert b"".join(data) == b"".join(frames.pack(kind, number, body, to))


@given(st.sampled_from(["", "host1", "h" * 63]), NAMES, st.integers(0, 10**6), st.integers(0, 4095))
def test_an_address_is_read_as_it_was_written(place: str, mesh: str, generation: int, rank: int) -> None:
    address = Address(place, frames.socket_name(mesh, generation, rank))
    assert frames.address_from(address.to()) == address
    assert len(address.name) < 40  # a folder of 64 bytes before it still fits a socket's address


@pytest.mark.parametrize(
    "to",
    [
        b"",
        b"host1",
        b"host1\0",
        b"\0../../etc/passwd",
        b"\0" + b"a" * 12 + b".0./x",
        b"\0" + b"a" * 12 + b".0.1.2",
        b"\0" + b"a" * 12 + b".0." + b"9" * 30,
        b"\0" + b"A" * 12 + b".0.0",
        b"\0" + b"a" * 12 + b".-1.0",
        b"\xff\xfe\0" + b"a" * 12 + b"." + "٣".encode() + b".0",
        b"x" * 400 + b"\0" + b"a" * 12 + b".0.0",
    ],
)
def test_what_is_no_address_is_refused(to: bytes) -> None:
    """A name becomes a part of a path."""
    with pytest.raises(BadFrames):
        frames.address_from(to)


def test_generations_and_meshes_have_sockets_of_their_own() -> None:
    names = {frames.socket_name(m, g, r) for m in ("a", "b", "a.1") for g in range(3) for r in range(3)}
    assert len(names) == 27
