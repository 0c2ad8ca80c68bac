"""Keys of a run: derived the same each time, different for each machine and run, never shown."""

from __future__ import annotations

import pytest
import zmq

from forgectl.messages.keys import RunKeys


def test_they_are_the_same_whenever_they_are_derived() -> None:
    keys = RunKeys.new()
    again = RunKeys.from_text(keys.text)
    for place in ("", "a", "ü" * 60):
        assert again.secret(place) == keys.secret(place)
        assert again.public(place) == keys.public(place)


def test_each_machine_and_run_has_its_own() -> None:
    one, two = RunKeys.new(), RunKeys.new()
    every = [keys.secret(place) for keys in (one, two) for place in ("", "a", "b")]
    assert len(set(every)) == 6
    assert not set(every) & {one.text, two.text}


def test_public_and_secret_belong_together() -> None:
    keys = RunKeys.new()
    assert keys.public("a") == zmq.curve_public(keys.secret("a").encode()).decode()
    assert keys.members(["", "a"]) == {"": keys.public(""), "a": keys.public("a")}
    assert len(keys.public("a")) == len(keys.secret("a")) == 40


def test_nothing_shows_the_secret() -> None:
    keys = RunKeys.new()
    for shown in (repr(keys), str(keys), f"{keys}"):
        assert keys.text not in shown
        assert keys.secret("") not in shown


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 31, "00" * 33])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bytes|hex"):
        RunKeys.from_text(text)
