"""Our frozen dataclasses behave as those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from forgectl.frozen import dataclass
from forgectl.protocol.supervision import Event, Prepared, RankExited, Stats


def shape(decorate: Any) -> Any:
    """A class with every kind of field that there is."""

    @decorate(frozen=True)
    class Shape:
        name: str
        size: int = 1
        parts: list[int] = field(default_factory=list)
        secret: str = field(default="", repr=False)

    return Shape


Ours, Theirs = shape(dataclass), shape(dataclasses.dataclass)

CALLS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    (("a",), {}),
    (("a", 2, [3], "s"), {}),
    (("a",), {"secret": "s"}),
    ((), {"size": 0, "name": "a"}),
    ((), {}),
    ((), {"size": 2}),
    (("a", 2, [3], "s", 5), {}),
    (("a",), {"name": "b"}),
    (("a",), {"wrong": 1}),
)


def outcome(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Exception as e:
        return type(e)


@pytest.mark.parametrize(("args", "kwargs"), CALLS, ids=repr)
def test_made_and_shown_as_the_standard_ones(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = (outcome(functools.partial(c, *args, **kwargs)) for c in (Ours, Theirs))
    assert repr(ours) == repr(theirs)
    if not isinstance(theirs, type):
        assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
        assert vars(dataclasses.replace(ours, size=9)) == vars(dataclasses.replace(theirs, size=9))


def test_values_alone_make_two_equal_and_give_the_hash() -> None:
    event = Event(1, Prepared("m"))
    assert event == Event(1, Prepared("m"))
    assert event != Event(2, Prepared("m"))
    fields: object = (1, Prepared("m"))
    assert event != fields
    exited = RankExited("m", 0, 1, 0, None)
    assert hash(exited) == hash(RankExited("m", 0, 1, 0, None))
    assert len({exited, RankExited("m", 0, 1, 0, None), RankExited("m", 0, 2, 0, None)}) == 2
    assert outcome(lambda: hash(Stats({}))) is TypeError


def test_a_default_made_by_a_function_is_everyones_own() -> None:
    assert Ours("a").parts is not Ours("a").parts


def test_nothing_can_be_set_or_deleted() -> None:
    exited: Any = RankExited("m", 0, 1, 0, None)
    changes = (lambda: setattr(exited, "rank", 2), lambda: setattr(exited, "new", 2), lambda: delattr(exited, "rank"))
    for change in changes:
        assert outcome(change) is dataclasses.FrozenInstanceError
    assert exited.rank == 1


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy])
def test_copies_are_equal(again: Callable[[Any], Any]) -> None:
    exited = RankExited("m", 0, 1, 0, None, log_tail=("x",))
    assert again(exited) == exited
