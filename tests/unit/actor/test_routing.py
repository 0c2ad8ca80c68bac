"""Routers alone: whom they pick from made-up loads."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.actor.service.routing import ROUTERS, LeastLoaded, RoundRobin, Router, SessionRouter, make_router


@dataclass(frozen=True)
class Fake:
    index: int
    running: int = 0
    queued: int = 0


SETS = st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=30)
LOADS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(SETS)
def test_round_robin_goes_on_from_the_last_index_while_the_set_changes(sets: list[set[int]]) -> None:
    router, last = RoundRobin(), -1
    for indexes in sets:
        later = [i for i in sorted(indexes) if i > last]
        expected = later[0] if later else min(indexes)
        last = router.pick([Fake(i) for i in sorted(indexes)]).index
        assert last == expected


@given(st.integers(1, 6), st.integers(1, 5))
def test_round_robin_and_sessions_are_even(replicas: int, rounds: int) -> None:
    for router in (RoundRobin(), SessionRouter()):
        picks = Counter(router.pick([Fake(i) for i in range(replicas)]).index for _ in range(replicas * rounds))
        assert set(picks.values()) == {rounds}


@given(LOADS)
def test_least_loaded_picks_none_that_has_more_than_another(loads: list[tuple[int, int]]) -> None:
    replicas = [Fake(i, *load) for i, load in enumerate(loads)]
    picked = LeastLoaded().pick(replicas)
    assert picked in replicas
    assert picked.running + picked.queued == min(r.running + r.queued for r in replicas)


@given(st.integers(1, 6))
def test_least_loaded_spreads_ties(replicas: int) -> None:
    router = LeastLoaded()
    assert {router.pick([Fake(i) for i in range(replicas)]).index for _ in range(replicas)} == set(range(replicas))


def test_by_name_class_and_instance() -> None:
    class Mine(RoundRobin):
        pass

    mine = Mine()
    assert make_router(mine) is mine
    assert type(make_router(Mine)) is Mine
    assert {name: type(make_router(name)) for name in ROUTERS} == ROUTERS
    assert make_router("session") is not make_router("session")


@pytest.mark.parametrize("wrong", ["round-robin", "", 5, None, Router, int, RoundRobin.pick, []])
def test_anything_else_is_refused_with_the_choices(wrong: Any) -> None:
    with pytest.raises(ValueError, match="'round_robin', 'least_loaded', 'session'"):
        make_router(wrong)


def test_a_near_miss_is_guessed() -> None:
    with pytest.raises(ValueError, match="did you mean 'round_robin'"):
        make_router("round-robin")
