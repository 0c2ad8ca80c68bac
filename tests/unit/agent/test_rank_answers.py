"""What a rank answers about its stacks is its own text: whatever it is, it becomes evidence or one of a few errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.agent.stacks import UNREADABLE, LiveRank, _read
from forgectl.stacks import reading
from forgectl.system.processes import Identity

RANK = LiveRank(0, "local", Identity(1, 1, "boot"), "/nowhere/0", "/work", "python")
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=12,
)
FRAMES = st.lists(st.tuples(st.text(max_size=9), st.one_of(st.integers(), VALUES), st.text(max_size=5)), max_size=3)
THREADS = st.lists(st.tuples(st.text(max_size=5), st.booleans(), st.one_of(FRAMES, VALUES)), max_size=3)
GROUPS = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.one_of(st.lists(st.integers()), VALUES)))


def read(answer: bytes) -> Any:
    try:
        return _read(answer, RANK, str)
    except UNREADABLE as e:
        return str(e)


@given(st.binary(max_size=200))
def test_bytes(data: bytes) -> None:
    read(data)


@given(VALUES, st.binary(max_size=50))
def test_any_json(document: object, rest: bytes) -> None:
    read(json.dumps(document).encode() + b"\n" + rest)


@pytest.mark.thorough
@given(
    st.one_of(THREADS, VALUES), st.one_of(GROUPS, VALUES), st.one_of(st.lists(st.integers(-3, 60), max_size=2), VALUES),
    st.one_of(st.dictionaries(st.sampled_from(["entries", "pg_config", "pg_status", "version"]), VALUES), VALUES),
)  # fmt: skip
def test_documents_of_the_right_form(threads: object, groups: object, recorded: object, entries: object) -> None:
    document = {"threads": threads, "groups": groups, "recorded": recorded}
    read(json.dumps(document).encode() + b"\n" + json.dumps(entries).encode())


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b'{"threads": ' + b"[" * 100_000], ids=range(3))
def test_deep_nesting(deep: bytes) -> None:
    read(deep)
    read(b'{"threads": [], "groups": [], "recorded": [%d]}\n' % len(deep) + deep)


@given(st.text(alphabet=st.sampled_from('Thread 0xab (most recent call first):\n  File "", line 1in x'), max_size=300))
def test_what_faulthandler_writes_may_be_cut_or_spoilt(text: str) -> None:
    reading.is_whole(text)
    reading.of_faulthandler(text, "/work", "/forgectl")
