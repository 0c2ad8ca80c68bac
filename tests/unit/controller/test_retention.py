"""Which ended runs go by which policy."""

from __future__ import annotations

import random

import pytest

from forgectl.controller.retention import DEFAULT, EndedRun, Keep, parse_keep, show_keep, superfluous
from forgectl.errors import UsageError

NOW = 1_800_000_000.0
DAY = 86400.0
GIB = 1 << 30


def run(name: str, days_ago: float, size: int = 0) -> EndedRun:
    return EndedRun(name, NOW - days_ago * DAY, size)


def gone(runs: list[EndedRun], keep: str, **more: float) -> list[tuple[str, str]]:
    return [(s.ended.run, s.why) for s in superfluous(runs, parse_keep(keep, "here"), NOW, **more)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d, 100 runs, 10 GiB", Keep(30 * DAY, 100, 10 * GIB)),
        ("10GiB,1run", Keep(None, 1, 10 * GIB)),
        ("2w", Keep(14 * DAY)),
        ("90m", Keep(5400.0)),
        ("0 runs", Keep(None, 0)),
        ("1.5 MiB", Keep(None, None, 3 << 19)),
        ("1 g", Keep(None, None, GIB)),
        (" Everything ", Keep()),
    ],
)
def test_a_policy_is_read(text: str, expected: Keep) -> None:
    assert parse_keep(text, "here") == expected
    assert parse_keep(show_keep(expected), "here") == expected


def test_the_default_is_what_the_help_says() -> None:
    assert show_keep(DEFAULT) == "30d, 100 runs, 10 GiB"


@pytest.mark.parametrize(
    "text", ["", "30", "30d 100 runs", "30 days", "-1d", "1.5 runs", "30d,", "1e3 runs", "5 apples", "nan d", "30d, 1w"]
)
def test_another_text_is_refused_with_its_source(text: str) -> None:
    with pytest.raises(UsageError, match=r"^here: ") as caught:
        parse_keep(text, "here")
    assert caught.value.exit_code == 64


def test_each_limit_lets_the_oldest_go() -> None:
    runs = [run("new", 1, 6 * GIB), run("old", 20, 3 * GIB), run("older", 40, 3 * GIB)]
    assert gone(runs, "30d") == [("older", "older than 30d")]
    assert gone(runs, "2 runs") == [("older", "beyond 2 runs")]
    assert gone(runs, "9 GiB") == [("older", "beyond 9 GiB")]
    assert gone(runs, "30d, 1 run") == [("older", "older than 30d"), ("old", "beyond 1 run")]
    assert gone(runs, "0 runs") == [(r, "beyond 0 runs") for r in ("older", "old", "new")]
    assert gone(runs, "everything") == []


def test_a_run_that_is_too_large_takes_no_others_with_it() -> None:
    runs = [run("small", 1, GIB), run("huge", 2, 50 * GIB), run("older", 3, GIB)]
    assert gone(runs, "10 GiB") == [("huge", "beyond 10 GiB")]


def test_one_that_has_just_ended_is_spared_but_counts() -> None:
    runs = [run("now", 0, 50 * GIB), run("before", 1, 1)]
    assert gone(runs, "0 runs", spared=3600.0) == [("before", "beyond 0 runs")]
    assert gone(runs, "10 GiB", spared=3600.0) == [("before", "beyond 10 GiB")]


def test_a_clock_that_was_set_back_removes_nothing_that_is_new() -> None:
    assert gone([run("future", -3)], "1d, 0 runs", spared=3600.0) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_is_within_the_limits_and_stays_a_second_time(seed: int) -> None:
    chance = random.Random(seed)
    runs = [run(f"r{i}", chance.uniform(0, 60), chance.randrange(GIB)) for i in range(50)]
    keep = Keep(chance.choice([None, 30 * DAY]), chance.choice([None, 10]), chance.choice([None, 5 * GIB]))
    names = {s.ended.run for s in superfluous(runs, keep, NOW)}
    left = [r for r in runs if r.run not in names]
    assert keep.runs is None or len(left) <= keep.runs
    assert keep.size is None or sum(r.size for r in left) <= keep.size
    assert keep.age is None or all(NOW - r.ended <= keep.age for r in left)
    assert superfluous(left, keep, NOW) == []
