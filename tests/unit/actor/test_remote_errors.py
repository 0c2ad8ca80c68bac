"""What an endpoint raises reaches the caller, whatever it is: as itself, or at least in words."""

import threading
from typing import Any

import pytest

from forgectl.actor.remote_errors import carrier, original
from forgectl.errors import ActorDied
from forgectl.messages import pickling


class NeedsArguments(Exception):
    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"{code} at {where}")


class Held(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class BecomesNone(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def crossed(error: Exception) -> tuple[Any, Any]:
    """The error and its cause as another process would have it."""
    try:
        raise error
    except Exception as e:
        carried = pickling.dumps(carrier(e))
    return original(pickling.loads(carried))


def test_it_is_the_same_exception() -> None:
    found, remote = crossed(ValueError("no", 7))
    assert (type(found), found.args) == (ValueError, ("no", 7))
    assert "in crossed" in str(remote)
    assert str(remote).rstrip().endswith("ValueError: ('no', 7)")


def test_attributes_and_notes_come_along() -> None:
    error = ActorDied("gone", mesh="a", rank=1, signal=9, log_tail=["last"])
    vars(error)["__notes__"] = ["a note"]  # as add_note of Python 3.11 does
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
def test_what_cannot_be_pickled_there_and_back_is_told_in_words(error: Exception, words: str) -> None:
    found, remote = crossed(error)
    assert type(found) is RuntimeError
    assert words in str(found)
    assert "in crossed" in str(remote)


def test_an_exception_with_a_large_buffer() -> None:
    np = pytest.importorskip("numpy")
    found, _ = crossed(ValueError(np.arange(200_000)))
    assert found.args[0][-1] == 199_999


def test_stop_iteration_is_told_in_words() -> None:
    """No coroutine may raise it: the caller would get something else."""
    found, _ = crossed(StopIteration("odd"))
    assert (type(found), str(found)) == (RuntimeError, "StopIteration: odd")
