"""The life of an actor: `setup`, what holds in all of its endpoints, and its cleanup at every kind of end."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import Forge, processes_of, until
from tests.process.actor_scripts import background, bring, ended, play, the_run

SPEC = "actors: {life: {class: 'play_life:%s', procs: 2, preload: []}}"


def notes(forge: Forge) -> list[str]:
    """What the ranks have noted, sorted."""
    return sorted((forge.folder / "notes").read_text().splitlines())


def cleaned(by: str, *ranks: int) -> list[str]:
    return sorted(line for rank in ranks for line in (f"atexit {rank}", f"cleanup {rank} {by}"))


def log_of(forge: Forge, mesh: str) -> str:
    return (forge.run_dir(the_run(forge)) / "logs" / mesh / "0" / "rank-0.log").read_text()


@pytest.mark.parametrize(
    "scene",
    [
        "a_class_without_setup_has_one",
        "a_handle_ends_its_mesh Plain",
        "a_handle_ends_its_mesh Async",
        "a_spawned_rank_cleans_up_too",
        "what_setup_began_is_cleaned_up_if_it_fails",
        "cleanup_runs_while_an_endpoint_does Plain hold",
        "cleanup_runs_while_an_endpoint_does Async hold",
        "cleanup_runs_while_an_endpoint_does Plain hold_loop",
        "cleanup_runs_while_an_endpoint_does Async wait",
        "the_rest_cleans_up_after_a_death Async",
        "sigterm_of_somebody_else_is_a_death",
        "a_cleanup_that_hangs_has_the_grace",
        "a_second_sigterm_shows_where_it_hangs",
        "a_handler_of_the_user_wins",
        "a_child_of_a_rank_dies_of_sigterm",
        "with_ends_a_mesh",
        "with_ends_a_mesh_in_plain_code",
        "shutdown_ends_the_run_and_the_next_launch_begins_another",
        "help_and_completion_know_the_endpoints",
        "dropped_handles_keep_their_mesh",
        "torchs_modes_of_setup_hold",
    ],
)
def test_the_life_of_an_actor(forge: Forge, scene: str) -> None:
    play(forge, f"play_life.py {scene}")


def test_a_failing_cleanup_is_logged_and_ends_the_rank(forge: Forge) -> None:
    play(forge, "play_life.py a_failing_cleanup_is_logged")
    log = log_of(forge, "fails")
    assert "Fails.__cleanup__ raised" in log and "ValueError: no cleanup today" in log
    [rank] = forge.mesh(the_run(forge), "fails")["ranks"]
    assert (rank["exit_code"], rank["signal"]) == (0, None)


def test_the_end_of_a_script_lets_its_actors_clean_up(forge: Forge) -> None:
    play(forge, "play_life.py end Async")
    assert notes(forge) == cleaned("MeshStopped the end of its script", 0)


def test_ctrl_c_in_a_script_lets_its_actors_clean_up(forge: Forge) -> None:
    script = background(forge, "play_life.py stay Async")
    script.send_signal(signal.SIGINT)
    script.communicate(timeout=60)
    ended(forge, the_run(forge))
    assert notes(forge) == cleaned("MeshStopped the end of its script", 0, 1)


def test_ctrl_c_of_a_launch_lets_its_actors_clean_up(forge: Forge) -> None:
    bring(forge, "play_life.py")
    launch = forge.start("launch", forge.spec(SPEC % "Async"))
    until(lambda: any(r["state"] == "running" for r in forge.status()), "the actors")
    launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=60)
    assert not processes_of(the_run(forge))
    assert notes(forge) == cleaned("MeshStopped Ctrl-C", 0, 1)


def test_forgectl_shutdown_lets_actors_clean_up_and_shows_how_they_ended(forge: Forge) -> None:
    bring(forge, "play_life.py")
    run = forge.launch(SPEC % "Plain")
    assert "life stopped: 2 × exit 0" in forge.ok("shutdown", "--run", run)
    assert notes(forge) == cleaned("MeshStopped forgectl shutdown", 0, 1)


def test_the_end_of_a_driver_lets_its_actors_clean_up(forge: Forge) -> None:
    bring(forge, "play_life.py")
    forge.write("work.py", "import forgectl; print(forgectl.get('life').is_ready.call().get())")
    launch = forge.start("launch", forge.spec(SPEC % "Plain" + "\ndriver: {run: work.py}"))
    out, err = launch.communicate(timeout=60)
    assert launch.returncode == 0, f"{out}\n{err}"
    assert not processes_of(the_run(forge))
    assert notes(forge) == cleaned("MeshStopped the end of its driver", 0, 1)
