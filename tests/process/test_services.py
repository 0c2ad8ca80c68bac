"""Services in Python scripts: calls, routing, sessions, batches, lines, event loops. Real replicas."""

from __future__ import annotations

from tests.conftest import Forge
from tests.process.actor_scripts import meshes, play_in_silence

# ---------------------------------------------------------------- calls


def test_route_and_fanout(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py route_and_fanout")
    found = meshes(forge)
    assert sorted(found) == ["svc.0", "svc.1", "svc.2"]
    assert {(m["kind"], m["state"], m["desired"]) for m in found.values()} == {("service", "stopped", 2)}


def test_the_verbs_of_actors_and_what_there_is_not(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py the_verbs_of_actors_and_what_there_is_not")


def test_values_of_all_ranks_where_asked_for(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py values_of_all_ranks_where_asked_for")


def test_exceptions_reach_the_caller_and_are_no_reason_to_relaunch(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py exceptions_reach_the_caller_and_are_no_reason_to_relaunch")
    assert {m["restarts"] for m in meshes(forge).values()} == {0}


# ---------------------------------------------------------------- routing


def test_least_loaded_avoids_the_busy_one(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py least_loaded_avoids_the_busy_one")


def test_an_endpoint_has_a_router_of_its_own(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py an_endpoint_has_a_router_of_its_own")


# ---------------------------------------------------------------- sessions


def test_sessions_stick_and_do_not_leak(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py sessions_stick_and_do_not_leak")


def test_a_session_moves_when_its_replica_dies_and_stays_there(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py a_session_moves_when_its_replica_dies_and_stays_there")


# ---------------------------------------------------------------- batches


def test_batches(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py batches")


# ---------------------------------------------------------------- lines


def test_a_cancelled_caller_leaves_its_place(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py a_cancelled_caller_leaves_its_place")


def test_a_bounded_queue_refuses(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py a_bounded_queue_refuses")


def test_metrics_add_up(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py metrics_add_up")


# ---------------------------------------------------------------- loops and threads


def test_a_service_is_used_from_several_event_loops(forge: Forge) -> None:
    play_in_silence(forge, "play_services.py a_service_is_used_from_several_event_loops")
