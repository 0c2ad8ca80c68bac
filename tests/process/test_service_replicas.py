"""Replicas of services that die, come back, or do not; services that start, change their size, and end."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import background, meshes, play_in_silence, the_run
from tests.process.deaths import controller_of, end

# ---------------------------------------------------------------- death


def test_a_killed_replica_is_left_out_and_comes_back(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py a_killed_replica_is_left_out_and_comes_back")
    found = meshes(forge)
    assert (found["svc.0"]["restarts"], found["svc.1"]["restarts"], found["svc.0"]["max_restarts"]) == (1, 0, 3)


def test_new_requests_meet_no_error_while_one_is_away(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py new_requests_meet_no_error_while_one_is_away")


def test_an_idempotent_request_runs_again_elsewhere(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py an_idempotent_request_runs_again_elsewhere")


def test_500_requests_lose_none_while_replicas_are_killed(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py five_hundred_requests_lose_none_while_replicas_are_killed")
    assert {n: m["restarts"] for n, m in meshes(forge).items()} == {"svc.0": 0, "svc.1": 1, "svc.2": 1}


def test_the_restart_limit_and_the_end_of_all_replicas(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py the_restart_limit_and_the_end_of_all_replicas")
    found = meshes(forge)
    assert {n: (m["state"], m["restarts"]) for n, m in found.items()} == {
        "svc.0": ("failed", 1),
        "svc.1": ("failed", 1),
        "svc.2": ("stopped", 0),
    }


def test_callers_wait_for_the_one_that_is_coming_back(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py callers_wait_for_the_one_that_is_coming_back")


def test_a_setup_that_fails_after_a_relaunch_ends_that_replica_alone(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py a_setup_that_fails_after_a_relaunch_ends_that_replica_alone")
    assert "LookupError: not twice" in meshes(forge)["svc.1"]["reason"]


def test_an_endpoint_that_exits_ends_its_replica_which_comes_back(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py an_endpoint_that_exits_ends_its_replica_which_comes_back")


def test_all_of_a_batch_are_told_of_a_death(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py all_of_a_batch_are_told_of_a_death")


def test_the_death_of_an_actor_that_a_replica_called_is_not_its_own(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py the_death_of_an_actor_that_a_replica_called_is_not_its_own")


def test_a_replica_is_relaunched_by_a_controller_that_took_over(forge: Forge) -> None:
    script = background(forge, "play_replicas.py a_replica_is_relaunched_by_a_controller_that_took_over")
    run = the_run(forge)
    end(controller_of(forge, run))
    (forge.folder / "controller-is-dead").touch()
    out, err = script.communicate(timeout=90)
    assert (script.returncode, out, err) == (0, "", "")
    assert {n: m["restarts"] for n, m in meshes(forge).items()} == {"svc.0": 0, "svc.1": 1}


# ---------------------------------------------------------------- size, start, end


def test_scale_up_and_down_under_load(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py scale_up_and_down_under_load")
    states = {n: m["state"] for n, m in meshes(forge).items()}
    assert set(states) == {f"svc.{i}" for i in range(6)}
    assert set(states.values()) == {"stopped"}


def test_shutdown_drains(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py shutdown_drains")


def test_a_script_that_ends_with_requests_under_way(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py a_script_that_ends_with_requests_under_way")
    assert {m["state"] for m in meshes(forge).values()} == {"stopped"}


@pytest.mark.parametrize("how", ["raises", "dies", "first waits"])
def test_one_replica_that_does_not_start_takes_all_down(forge: Forge, how: str) -> None:
    play_in_silence(forge, f"play_replicas.py one_replica_that_does_not_start_takes_all_down {how!r}")


def test_a_start_that_is_cancelled_leaves_nothing(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py a_start_that_is_cancelled_leaves_nothing")


def test_names_of_services(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py names_of_services")


def test_launch_and_shutdown_of_a_class_serve_each_replica(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py launch_and_shutdown_of_a_class_serve_each_replica")
    assert {n: m["state"] for n, m in meshes(forge).items()} == dict.fromkeys(
        ["svc.0", "svc.1", "helper-svc.0", "helper-svc.1"], "stopped"
    )


def test_none_is_lost_while_replicas_die_and_their_number_changes(forge: Forge) -> None:
    """With sessions, batches and callers that give up, all at once."""
    play_in_silence(forge, "play_replicas.py none_is_lost_while_replicas_die_and_their_number_changes")


def test_a_scale_that_fails_and_one_without_a_replica_that_is_away(forge: Forge) -> None:
    play_in_silence(forge, "play_replicas.py a_scale_that_fails_and_one_without_a_replica_that_is_away")
