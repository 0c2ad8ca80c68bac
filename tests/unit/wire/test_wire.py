"""Lines of messages from whoever: bounded in time and size, and nothing but ProtocolError for what cannot be one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.protocol.host_survey import RELAY_TO_LAUNCHER
from forgectl.protocol.supervision import AGENT_TO_CONTROLLER, Happening
from forgectl.transport.ssh import NOISE, ErrorOutput
from forgectl.wire.envelope import ProtocolError, decode
from forgectl.wire.unix_sockets import Connection

ALL = (*AGENT_TO_CONTROLLER, *RELAY_TO_LAUNCHER, *get_args(Happening))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=5), st.sampled_from(["seq", "what", "meshes", "parts", "at"])), inner
        ),
    ),
    max_leaves=10,
)


def decoded(message: object) -> object:
    """The message, or what the error says."""
    try:
        return decode(json.dumps(message).encode(), ALL)
    except ProtocolError as e:
        return str(e)


@pytest.mark.thorough
@given(st.sampled_from([*(kind.__name__ for kind in ALL), "x"]), st.dictionaries(st.text(max_size=5), VALUES))
def test_any_json_is_a_message_or_a_protocol_error(name: str, fields: dict[str, object]) -> None:
    for message in ({"type": name, **fields}, {"type": [name]}, [name], name, None):
        assert decoded(message)


@pytest.mark.thorough
@given(st.data())
def test_fields_of_the_right_name_and_any_value_are_a_message_or_a_protocol_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(ALL))
    fields = {name: data.draw(VALUES) for name in kind.__dataclass_fields__}
    assert decoded({"type": kind.__name__, **fields})


def test_a_line_that_drips_is_too_late_though_each_byte_is_in_time() -> None:
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.05):
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            Connection(ours, ALL).receive_line(0.5)
    finally:
        over.set()
        thread.join()
        ours.close()
        theirs.close()


def test_what_ssh_prints_is_read_as_far_as_it_matters_and_blocks_ssh_beyond() -> None:
    said = ErrorOutput()
    os.set_blocking(said.writing, False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += os.write(said.writing, b"ssh: all is lost\n" * 100)
    assert written <= 1 << 20
    assert said.lines()[0] == "ssh: all is lost"
    said.close_writing()
    lines = said.lines()
    assert sum(len(line) + 1 for line in lines) <= NOISE + (1 << 16)
    said.close()
    assert said.lines() == lines, "what was read is kept"


def test_nobody_waits_for_an_ssh_that_prints_nothing() -> None:
    said = ErrorOutput()
    assert said.lines() == []
    assert not said.is_full
    said.close()
    said.close()
