"""The judge of histories sees what is lost, doubled or explained wrongly: a judge that finds nothing proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.history import Event, Hit, faults, wrong_causes

FAILURE = {"kind": "signal", "rank": 1, "signal": 9, "host": "local", "message": "rank 1 was killed by SIGKILL"}
OF_0: dict[str, Any] = {"mesh": "m", "generation": 0, "host": "local"}
OF_1: dict[str, Any] = {**OF_0, "generation": 1}
HIT = Hit("rank", 11)


def numbered(events: list[Event]) -> list[Event]:
    return [{**event, "seq": number} for number, event in enumerate(events, 1)]


def history() -> list[Event]:
    """One restart after a death, and an end in order."""
    return numbered(
        [
            {"event": "run_started"},
            {"event": "mesh_starting", **OF_0},
            {"event": "rank_started", **OF_0, "rank": 0, "pid": 10},
            {"event": "rank_started", **OF_0, "rank": 1, "pid": 11},
            {"event": "mesh_up", **OF_0},
            {"event": "run_up"},
            {"event": "rank_exited", **OF_0, "rank": 1, "pid": 11},
            {"event": "mesh_failing", **OF_0, "rank": 1, "message": FAILURE["message"], "failure": FAILURE},
            {"event": "rank_exited", **OF_0, "rank": 0, "pid": 10},
            {"event": "mesh_restarted", **OF_0},
            {"event": "mesh_starting", **OF_1},
            {"event": "rank_started", **OF_1, "rank": 0, "pid": 20},
            {"event": "rank_exited", **OF_1, "rank": 0, "pid": 20},
            {"event": "controller_replaced"},
            {"event": "run_ended"},
        ]
    )


def test_a_whole_history_is_right() -> None:
    assert faults(history(), ended=True, replaced=1) == []
    assert faults(history()[:-1], ended=False) == []
    assert wrong_causes(history(), [HIT]) == []


@pytest.mark.parametrize("number", range(1, 16))
def test_an_event_that_is_lost_leaves_a_gap_in_the_numbers(number: int) -> None:
    assert faults([e for e in history() if e["seq"] != number], ended=True)


@pytest.mark.parametrize("lost", ["mesh_starting", "rank_started", "rank_exited", "run_ended", "controller_replaced"])
def test_some_are_missed_though_the_numbers_are_whole(lost: str) -> None:
    at = next(i for i, e in enumerate(history()) if e["event"] == lost)
    assert faults(numbered(history()[:at] + history()[at + 1 :]), ended=True, replaced=1)


@pytest.mark.parametrize("at", [i for i in range(15) if i != 13])
def test_an_event_that_is_doubled(at: int) -> None:
    assert faults(numbered(history()[: at + 1] + history()[at:]), ended=True)


def test_who_was_not_killed_is_not_the_cause() -> None:
    for hit in (Hit("rank", 10), Hit("rank", 11, "elsewhere"), Hit("controller", 11), Hit("agent", 3)):
        assert wrong_causes(history(), [hit]), hit
    assert wrong_causes(history(), [])


def test_a_death_that_nothing_tells() -> None:
    quiet = [e for e in history() if e["event"] not in ("mesh_failing", "mesh_restarted")]
    assert wrong_causes(quiet, [HIT])
