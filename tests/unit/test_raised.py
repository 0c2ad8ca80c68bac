"""What an endpoint raises reaches the caller, whatever it is: as itself, or at least in words."""

import pickle
import threading

import pytest

from forgectl.actor.raised import RemoteTraceback, carrier, original
from forgectl.actor.shells import _original
from forgectl.errors import ActorDied


class NeedsArguments(Exception):
    def __init__(self, code, *, where):
        super().__init__(f"{code} at {where}")


class Held(Exception):
    def __init__(self):
        super().__init__("held")
        self.lock = threading.Lock()


class BecomesNone(Exception):
    def __reduce__(self):
        return type(None), ()


def crossed(error):
    """The error and its cause as another process would have it."""
    try:
        raise error
    except Exception as e:
        carried = pickle.dumps(carrier(e))
    return original(pickle.loads(carried))  # noqa: S301 (our own)


def test_it_is_the_same_exception():
    found, remote = crossed(ValueError("no", 7))
    assert (type(found), found.args) == (ValueError, ("no", 7))
    assert "in crossed" in str(remote)
    assert str(remote).rstrip().endswith("ValueError: ('no', 7)")


def test_attributes_and_notes_come_along():
    error = ActorDied("gone", mesh="a", rank=1, signal=9, log_tail=["last"])
    error.__notes__ = ["a note"]
    found, _ = crossed(error)
    assert (type(found), found.mesh, found.rank, found.log_tail) == (ActorDied, "a", 1, ("last",))
    assert found.__notes__ == ["a note"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NeedsArguments(7, where="here"), "NeedsArguments: 7 at here"),
        (Held(), "Held: held"),
        (BecomesNone("none"), "BecomesNone: none"),
    ],
)
def test_what_cannot_be_pickled_there_and_back_is_told_in_words(error, words):
    found, remote = crossed(error)
    assert type(found) is RuntimeError
    assert words in str(found)
    assert "in crossed" in str(remote)


def test_what_monarch_raises_itself_is_kept():
    class Theirs:
        exception = TypeError("cannot pickle")

        def __str__(self):
            return "their traceback"

    found, remote = _original(Theirs())
    assert found is Theirs.exception
    assert isinstance(remote, RemoteTraceback)
    assert str(remote) == "\ntheir traceback"
