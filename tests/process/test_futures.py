"""Calls are futures: sent when they are made, awaited later, twice, elsewhere or never."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play


@pytest.mark.parametrize(
    "scene",
    [
        "calls_first_and_awaits_later_run_together",
        "a_call_that_nobody_awaits_is_made",
        "what_it_raises_is_logged_once",
        "plain_code_uses_get",
        "get_in_an_event_loop_says_what_to_do",
        "a_call_outlives_the_loop_that_it_was_made_in",
        "a_cancelled_call_leaves_its_rank_usable",
        "calls_of_any_thread_come_in_their_order",
        "calls_while_the_mesh_restarts_are_sent_in_order_with_the_values_of_then",
        "a_concurrent_endpoint_does_not_wait_for_its_turn",
        "a_class_may_be_driven_by_tasks",
    ],
)
def test_calls_are_futures(forge: Forge, scene: str) -> None:
    play(forge, f"play_futures.py {scene}")
