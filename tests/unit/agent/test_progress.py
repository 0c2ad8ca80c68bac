"""When a rank hangs: what counts as progress, and which ranks count."""

from __future__ import annotations

import pytest

from forgectl.agent.progress import RankProgress, Signs
from forgectl.model.plan import HANG_START, HangPolicy

POLICY = HangPolicy(after=10.0)
IDLE = (0, 0, 0, 0)
BEATS, IN_CALL, SERVED, CALLS = (5, 0, 0, 0), (0, 1, 0, 0), (0, 1, 1, 0), (0, 2, 1, 7)


class Rank:
    """A rank that is looked at once a second."""

    def __init__(self, policy: HangPolicy = POLICY, *, serves: bool = False) -> None:
        self.now = 100.0
        self.progress = RankProgress(policy, serves=serves, now=self.now)

    def see(self, signs: Signs, seconds: int = 1) -> bool:
        """Whether it hangs after it has looked like this for so long."""
        for _ in range(seconds):
            self.now += 1.0
            self.progress.see(signs, self.now, 3.0)
        return self.progress.hangs()


@pytest.mark.parametrize(
    "signs", [Signs(BEATS), Signs(IDLE, entered=3), Signs(IDLE, log=80), Signs((), log=80)], ids=str
)
def test_a_rank_hangs_once_it_has_stopped_for_long_enough(signs: Signs) -> None:
    rank = Rank()
    assert not rank.see(signs)
    assert rank.progress.still(rank.now) == 0
    assert not rank.see(signs, 9)
    assert rank.see(signs)
    assert rank.progress.still(rank.now + 0.5) == 10.5


def test_progress_ends_a_hang() -> None:
    rank = Rank()
    assert rank.see(Signs(IDLE, entered=3), 20)
    assert not rank.see(Signs(IDLE, entered=4))
    assert rank.see(Signs(IDLE, entered=4), 10)


def test_a_script_without_any_sign_of_work_is_left_alone_unless_it_has_a_start() -> None:
    assert not Rank().see(Signs(IDLE), 100_000)
    bounded = Rank(HangPolicy(after=10.0, start=30.0))
    assert not bounded.see(Signs(IDLE), 30), "counted from the first look"
    assert bounded.see(Signs(IDLE))


def test_a_rank_that_waits_for_others_to_join_has_the_longer_time_of_a_start() -> None:
    rank = Rank()
    assert not rank.see(Signs(IDLE, joining=True), int(HANG_START))
    assert rank.see(Signs(IDLE, joining=True))


def test_an_actor_that_nobody_calls_never_hangs_whatever_it_did_before() -> None:
    rank = Rank(serves=True)
    assert not rank.see(Signs(IDLE), 100_000)
    assert not rank.see(Signs(SERVED, entered=9), 100_000)
    assert rank.progress.still(rank.now) is None


def test_an_actor_hangs_within_a_call() -> None:
    rank = Rank(serves=True)
    assert not rank.see(Signs(IN_CALL), 100), "its constructor may take as long as a start"
    rank.see(Signs(SERVED))
    assert not rank.see(Signs((0, 2, 1, 0)), 10)
    assert rank.see(Signs((0, 2, 1, 0)))
    assert not rank.see(Signs(CALLS)), "it calls others"
    assert rank.see(Signs(CALLS), 10)


def test_a_pause_of_the_agent_is_not_one_of_the_rank() -> None:
    rank = Rank()
    rank.see(Signs(BEATS))
    rank.now += 10_000.0
    assert not rank.see(Signs(BEATS))
