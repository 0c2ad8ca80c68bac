"""Endpoints that yield: their values come one by one, with backpressure, and end when either side leaves or dies."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play_in_silence


@pytest.mark.parametrize(
    "scene",
    [
        "every_value_comes_once_and_in_order",
        "it_begins_when_it_is_called",
        "a_slow_caller_holds_the_generator_up",
        "long_values_come_as_they_were_yielded",
        "plain_code_uses_for",
        "a_generator_may_call_its_own_rank",
        "it_holds_its_turn_until_it_ends",
        "other_verbs_name_it",
        "leaving_early_ends_the_generator",
        "leaving_before_its_turn",
        "cancelling_whoever_waits_ends_the_generator",
        "two_tasks_cannot_wait_for_the_same_value",
        "a_value_that_takes_too_long",
        "an_exception_comes_after_the_values",
        "a_killed_rank_ends_it_after_what_had_come",
        "what_had_come_is_not_lost_with_its_rank",
        "a_killed_caller_ends_the_generator",
        "a_killed_rank_that_calls_ends_the_generator",
        "a_service_streams_from_one_replica",
        "a_stream_takes_a_place_of_its_replica",
        "a_replica_that_dies_is_not_replaced_midway",
        "a_service_that_ends_ends_its_streams",
    ],
)
def test_streams(forge: Forge, scene: str) -> None:
    play_in_silence(forge, f"play_streams.py {scene}")
