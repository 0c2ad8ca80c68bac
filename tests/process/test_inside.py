"""What actors do with services, and what they launch and end; other processes that have a service's handle."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import Forge, processes_with, until
from tests.process.actor_scripts import bring, meshes, play, to_play


@pytest.mark.parametrize(
    "scene",
    [
        "a_service_may_be_given_to_actors",
        "values_and_batches_of_actors",
        "actors_wait_in_the_services_queue",
        "thousands_of_requests_of_an_actor_wait",
        "a_replica_dies_while_an_actor_routes",
        "replicas_are_killed_under_load_from_actors",
        "scaled_while_an_actor_routes",
        "shut_down_while_actors_wait",
        "a_drained_service_lets_calls_of_actors_end",
        "a_shutdown_that_its_actor_gives_up_goes_on",
        "a_caller_that_dies_or_gives_up_leaves_its_slot",
        "the_slot_of_a_lost_report_is_given_up",
        "a_session_of_ones_own_from_two_actors",
        "a_service_in_another_process_of_this_machine",
        "an_actor_launches_and_ends_others",
        "errors_of_launches_reach_the_actor",
        "two_actors_launch_at_once",
        "launched_by_a_constructor_and_in_setup",
        "an_actor_that_dies_while_it_launches_leaves_nothing",
        "an_actor_serves",
    ],
)
def test_actors_use_services_and_launch(forge: Forge, scene: str) -> None:
    bring(forge, "inside.py")
    play(forge, f"play_inside.py {scene}")
    assert {m["state"] for m in meshes(forge).values()} <= {"stopped", "failed"}


def test_a_process_that_waits_for_a_replica_learns_of_the_drivers_end(forge: Forge) -> None:
    bring(forge, "inside.py")
    process = forge.python(*to_play(forge, "play_inside.py a_service_in_another_process_of_this_machine killed"))
    assert process.wait(timeout=60) == -signal.SIGKILL
    until((forge.folder / "told").exists, "the error of the process that waits")
    until(lambda: not processes_with(f"FORGECTL_HOME={forge.home}"), "the end of the run and of who waited")
    assert "its run has ended" in (forge.folder / "told").read_text() or "svc.0" in (forge.folder / "told").read_text()
