"""The class API in Python scripts outside any launch, each with a run of its own."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play, the_run
from tests.process.outputs import log_of

# ---------------------------------------------------------------- what a rank is


def test_ranks_know_who_they_are_without_super_init(forge: Forge) -> None:
    play(forge, "play_actors.py ranks_know_who_they_are_without_super_init")


def test_a_rank_logs_its_name_and_leaves_the_root_logger_alone(forge: Forge) -> None:
    play(forge, "play_actors.py a_rank_logs_its_name_and_leaves_the_root_logger_alone")
    for rank in range(2):
        lines = log_of(forge, the_run(forge), "own", rank).splitlines()
        [first] = [line for line in lines if line.endswith("first") and "printed" not in line]
        assert first.endswith(f"Own {rank}/2] first"), lines
        assert [line for line in lines if line.endswith("second")] == ["MINE second", "printed second"]


def test_a_class_of_the_script_itself(forge: Forge) -> None:
    """It is pickled by value: no rank runs the script again."""
    play(forge, "play_actors.py a_class_of_the_script_itself")


def test_current_rank_and_size(forge: Forge) -> None:
    play(forge, "play_actors.py current_rank_and_size")


# ---------------------------------------------------------------- calls


def test_every_way_to_call(forge: Forge) -> None:
    play(forge, "play_actors.py every_way_to_call")


def test_an_unknown_endpoint_names_the_nearest(forge: Forge) -> None:
    play(forge, "play_actors.py an_unknown_endpoint_names_the_nearest")


def test_ordinary_exceptions_leave_the_actor_alive(forge: Forge) -> None:
    play(forge, "play_actors.py ordinary_exceptions_leave_the_actor_alive")
    assert "called by broadcast, raised" in log_of(forge, the_run(forge), "counter", 0)


def test_arguments_and_values_that_cannot_be_pickled_are_the_callers_error(forge: Forge) -> None:
    play(forge, "play_actors.py arguments_and_values_that_cannot_be_pickled_are_the_callers_error")


def test_a_deadline_ends_the_call_and_not_the_rank(forge: Forge) -> None:
    play(forge, "play_actors.py a_deadline_ends_the_call_and_not_the_rank")


def test_a_rank_runs_one_endpoint_at_a_time_in_order(forge: Forge) -> None:
    play(forge, "play_actors.py a_rank_runs_one_endpoint_at_a_time_in_order")


def test_calls_from_several_event_loops_and_threads(forge: Forge) -> None:
    play(forge, "play_actors.py calls_from_several_event_loops_and_threads")


# ---------------------------------------------------------------- handles in other hands


def test_a_handle_works_in_other_actors_and_comes_back(forge: Forge) -> None:
    play(forge, "play_actors.py a_handle_works_in_other_actors_and_comes_back")


def test_an_actor_may_call_itself(forge: Forge) -> None:
    play(forge, "play_actors.py an_actor_may_call_itself")


def test_an_actor_that_holds_a_handle_learns_of_a_death_and_follows_the_restart(forge: Forge) -> None:
    """The call that waits is told; later ones go to the generation after it, until there is none any more."""
    play(forge, "play_actors.py an_actor_that_holds_a_handle_learns_of_a_death_and_follows_the_restart")


# ---------------------------------------------------------------- launching and shutting down


def test_shutdown_twice_and_the_same_name_again(forge: Forge) -> None:
    play(forge, "play_actors.py shutdown_twice_and_the_same_name_again")


def test_a_block_ends_its_mesh_or_service(forge: Forge) -> None:
    play(forge, "play_actors.py a_block_ends_its_mesh_or_service")


def test_unnamed_meshes_of_one_class_are_numbered(forge: Forge) -> None:
    play(forge, "play_actors.py unnamed_meshes_of_one_class_are_numbered")


def test_launch_and_shutdown_can_be_overridden_together(forge: Forge) -> None:
    play(forge, "play_actors.py launch_and_shutdown_can_be_overridden_together")


def test_as_actor_cancelled_midway_leaves_nothing(forge: Forge) -> None:
    play(forge, "play_actors.py as_actor_cancelled_midway_leaves_nothing")


# ---------------------------------------------------------------- what is launched


def test_torch_distributed_in_an_actor_mesh(forge: Forge) -> None:
    pytest.importorskip("torch")
    play(forge, "play_actors.py torch_distributed_in_an_actor_mesh")


def test_spawned_ranks_and_their_env(forge: Forge) -> None:
    play(forge, "play_actors.py spawned_ranks_and_their_env")


def test_too_much_is_refused_and_leaves_the_run_usable(forge: Forge) -> None:
    play(forge, "play_actors.py too_much_is_refused_and_leaves_the_run_usable")


@pytest.mark.parametrize("how", ["launch", "call", "shutdown"])
def test_nothing_is_printed_by_us(forge: Forge, how: str) -> None:
    result = play(forge, f"play_actors.py nothing_is_printed_by_us {how}")
    assert (result.stdout, result.stderr) == ("", "")
