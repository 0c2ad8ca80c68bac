"""Messages in shared memory, between real processes: no byte is wrong, and nothing is left."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.messages import shared
from forgectl.messages.frames import BadFrames
from forgectl.messages.shared import LEAST, MOST_KEPT, MOST_SEGMENTS, Gone, Shared, opened, share
from tests.conftest import PROGRAMS

FRAMES = st.lists(st.binary(max_size=70_000), min_size=1, max_size=6)
LARGE = b"\x5a" * LEAST


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    for segment in list(shared._open):
        segment.close()
    shared._idle.clear()


def put(*frames: bytes, receivers: int = 1) -> Shared:
    found = share(frames, sum(map(len, frames)), receivers)
    assert found is not None
    return found


def descriptors(pid: int | str = "self") -> list[str]:
    """The memory of messages that a process has open."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return [link for link in links if link.startswith("/memfd:forgectl")]


@settings(deadline=None, max_examples=60)
@given(FRAMES, st.data())
def test_what_is_received_is_what_was_sent_and_the_receivers_own(frames: list[bytes], data: st.DataObject) -> None:
    receivers = data.draw(st.integers(1, 3))
    sent = put(*frames, LARGE, receivers=receivers)
    everybody_s = [opened(sent.reference) for _ in range(receivers)]
    for number, received in enumerate(everybody_s):
        assert [bytes(view) for view in received] == [*frames, LARGE]
        received[-1][:3] = bytes([number] * 3)  # it may write there
        sent.received()
    for number, received in enumerate(everybody_s):
        assert bytes(received[-1][:4]) == bytes([number] * 3) + b"\x5a"
    others = put(*frames, b"\x11" * LEAST)  # while all is kept: elsewhere
    assert [bytes(received[-1][3:]) for received in everybody_s] == [LARGE[3:]] * receivers
    others.received()


def test_memory_is_used_again_once_nobody_has_it_open() -> None:
    first = put(LARGE)
    kept = opened(first.reference)
    first.received()
    second = put(LARGE)
    assert second.reference != first.reference, "somebody has the first open"
    second.received()
    del kept
    third, fourth = put(LARGE), put(LARGE)
    assert {third.reference, fourth.reference} == {first.reference, second.reference}
    third.received()
    fourth.received()
    assert len(descriptors()) == 2


def test_memory_that_a_receiver_never_opened_is_not_used_again() -> None:
    """It may be late, and must not find another message."""
    one = put(LARGE, b"one", receivers=2)
    reference = one.reference
    one.received()
    del one
    assert not descriptors()
    other = put(LARGE, b"two")
    try:
        frames = opened(reference)
    except Gone:
        frames = []
    assert not frames, "the number of the descriptor was given anew"
    other.received()


def test_a_process_keeps_little() -> None:
    for _ in range(3):
        sent = [put(LARGE) for _ in range(MOST_SEGMENTS - 1)]
        assert len(descriptors()) <= MOST_SEGMENTS
        for one in sent:
            one.received()
    assert len(descriptors()) <= MOST_SEGMENTS // 2
    sent = [put(LARGE) for _ in range(MOST_SEGMENTS)]
    assert share((LARGE,), LEAST, 1) is None, "sockets carry the rest"
    del sent
    huge = put(bytes(MOST_KEPT))
    huge.received()
    assert not shared._idle


def test_arrays_that_are_kept_take_no_descriptors() -> None:
    least = len(os.listdir("/proc/self/fd"))
    kept = []
    for number in range(3000):
        sent = put(LARGE, number.to_bytes(4, "big"))
        kept.append(opened(sent.reference)[1])
        del sent
    assert len(os.listdir("/proc/self/fd")) <= least + 2
    assert [int.from_bytes(view, "big") for view in kept] == list(range(3000))


def test_without_a_descriptor_or_with_little_to_send_sockets_carry_it() -> None:
    assert share((b"x" * (LEAST - 1),), LEAST - 1, 1) is None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert share((LARGE,), LEAST, 1) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert share((LARGE,), LEAST, 1) is not None


def sender(*arguments: str) -> tuple[subprocess.Popen[str], bytes]:
    pipe = subprocess.PIPE
    argv = [sys.executable, str(PROGRAMS / "share_memory.py"), *arguments]
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, bytes.fromhex(process.stdout.readline())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sender_that_is_killed(when: str) -> None:
    """What was opened stays; what was not is gone, and says so."""
    process, reference = sender()
    received = opened(reference) if when == "after" else []
    process.kill()
    process.communicate()
    if received:
        assert [bytes(received[0]), bytes(received[1])] == [b"text", b"\x21" * LEAST]
    with pytest.raises(Gone):
        opened(reference)


def test_a_forked_child_has_nothing_of_it_open() -> None:
    process, reference = sender("fork")
    assert bytes(opened(reference)[0]) == b"text"
    process.communicate()
    assert process.returncode == 0


def test_references_that_are_none() -> None:
    with Path("/etc/passwd").open() as other:
        pid, number = os.getpid(), other.fileno()
        inode = os.fstat(number).st_ino
        with pytest.raises(Gone):
            opened(shared._HEAD.pack(pid, number, inode, 1) + (100).to_bytes(8, "big"))
    sent = put(LARGE)
    whole = shared._HEAD.unpack_from(sent.reference)
    for size in (0, LEAST + 64, 2**63, 2**64 - 1):
        with pytest.raises(BadFrames):
            opened(shared._HEAD.pack(*whole) + size.to_bytes(8, "big"))
    with pytest.raises(BadFrames):
        opened(sent.reference[:-1])
    with pytest.raises(Gone):
        opened(shared._HEAD.pack(whole[0], whole[1], whole[2] + 1, 1) + LEAST.to_bytes(8, "big"))
    rng = random.Random(7)
    for _ in range(500):
        with pytest.raises((BadFrames, Gone, OSError)):
            opened(rng.randbytes(rng.randrange(40)))
