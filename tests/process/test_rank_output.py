"""What ranks print is shown on the stderr of the script that launched them: all of it, once."""

from __future__ import annotations

import os
import pty
import re
from collections import Counter

from tests.conftest import Forge
from tests.process.actor_scripts import bring, play, to_play

PROGRAM = "play_output.py"


def shown(forge: Forge, scene: str) -> list[str]:
    return play(forge, f"{PROGRAM} {scene}").stderr.splitlines()


def test_every_line_of_each_rank_has_its_prefix_and_stdout_is_the_scripts(forge: Forge) -> None:
    result = play(forge, f"{PROGRAM} prints_and_ends")
    assert result.stdout == "mine\n"
    for rank in (0, 1):
        lines = [line for line in result.stderr.splitlines() if line.startswith(f"teller/{rank} │ ")]
        texts = [line.partition(" │ ")[2] for line in lines]
        assert texts[:3] == ["made", "twice", "as two lines"]
        assert texts[3].endswith("logged")
        assert texts[4:] == ["\x1b[32mgreen\x1b[0m \x1b]0;a title\x07and the last"]  # no terminal: byte for byte
    assert len(result.stderr.splitlines()) == 10


def test_on_a_terminal_lines_are_coloured_and_harmless(forge: Forge) -> None:
    ours, theirs = pty.openpty()
    forge.env.pop("NO_COLOR")
    process = forge.python(*to_play(forge, f"{PROGRAM} prints_and_ends"), stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while data := os.read(ours, 65536):
            text += data
    except OSError:  # Linux's way to say that the last writer has closed it
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert b"\x1b[36mteller/0 \xe2\x94\x82 \x1b[0m\x1b[32mgreen\x1b[0m and the last\r\n" in text
    assert b"\x1b]" not in text
    assert b"\x07" not in text


def test_what_a_constructor_prints_before_it_raises_is_shown(forge: Forge) -> None:
    assert "broken/0 │ before the error" in shown(forge, "fails_to_begin")


def test_every_generation_is_shown_and_an_unfinished_line_of_a_dead_rank(forge: Forge) -> None:
    lines = shown(forge, "dies_in_a_line")
    ours = [line for line in lines if line.startswith("teller/0 │ ")]
    assert ours == [f"teller/0 │ {text}" for text in ("begun", "no newline", "begun", "again")]


def test_a_mesh_may_be_muted(forge: Forge) -> None:
    lines = shown(forge, "mutes_one_of_two")
    assert Counter(lines) == {f"{name}/0 │ made": 1 for name in ("loud", "served.0", "served.1")}


def test_what_an_actor_launches_is_shown_by_the_script_or_muted(forge: Forge) -> None:
    assert Counter(shown(forge, "has_an_actor_launch")) == {"loud/0 │ made": 1, "served.0/0 │ made": 1}


def test_a_later_mesh_of_the_same_name_is_shown(forge: Forge) -> None:
    assert shown(forge, "uses_a_name_again") == ["again/0 │ one", "again/0 │ other"]


def test_a_forked_child_shows_the_ranks_of_its_own_run(forge: Forge) -> None:
    lines = shown(forge, "sets_out_anew_in_a_child")
    assert [line for line in lines if line.startswith("again/")] == ["again/0 │ one", "again/0 │ other"]
    assert len([line for line in lines if " │ " in line]) == 12, "Python warns of forks of threads, too"


def test_the_environment_mutes_all(forge: Forge) -> None:
    forge.env["FORGECTL_LOGS"] = "off"
    assert shown(forge, "prints_and_ends") == []


def test_a_flood_is_shown_whole_before_the_script_ends(forge: Forge) -> None:
    lines = shown(forge, "floods 100000")
    assert lines == ["teller/0 │ made", *(f"teller/0 │ {n:099}" for n in range(100_000))]


def test_a_script_ends_though_nobody_reads_its_stderr(forge: Forge) -> None:
    process = forge.python(*to_play(forge, f"{PROGRAM} stops_waiting_for_its_reader"))
    assert process.wait(90) == 0  # and nothing of its run is left, as the fixture proves


def test_a_script_goes_on_though_its_stderr_is_closed(forge: Forge) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    process = forge.python(*to_play(forge, f"{PROGRAM} prints_and_ends"), stderr=theirs)
    os.close(theirs)
    assert (process.communicate(timeout=90)[0], process.returncode) == ("mine\n", 0)


DRIVEN = f"name: told\ndriver: {{run: {PROGRAM} prints_and_ends}}\n"


def test_a_launch_shows_the_lines_of_its_driver_once(forge: Forge) -> None:
    bring(forge, PROGRAM)
    out = forge.ok("launch", forge.spec(DRIVEN))
    assert len(re.findall("twice", out)) == 2  # of two ranks
    assert "driver/0@local │ mine" in out


def test_a_driver_without_a_terminal_does_not_write_them_into_its_own_log(forge: Forge) -> None:
    bring(forge, PROGRAM)
    run = forge.launch(DRIVEN)
    forge.until_ended(run)
    assert forge.ok("logs", f"{run}/driver", "--no-prefix") == "mine\n"


def test_a_run_of_a_script_with_actors_shows_them_once(forge: Forge) -> None:
    script, scene = to_play(forge, f"{PROGRAM} prints_and_ends")
    out = forge.ok("run", script, scene)
    assert len(re.findall("│ twice$", out, re.MULTILINE)) == 2  # of two ranks
