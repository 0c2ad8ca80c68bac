"""Where the package of ready-made actors comes from, and what is said where a user's own module hides it."""

from __future__ import annotations

import pytest

import actors
from tests.conftest import Forge

SPEC = "actors: {trainer: {class: 'TARGET', preload: []}}"


def logs(forge: Forge) -> str:
    return "".join(p.read_text() for p in forge.home.rglob("rank-*.log"))


def test_a_users_module_of_that_name_comes_first(forge: Forge) -> None:
    forge.write("show.py", "import actors; print(actors.__file__)")
    forge.ok("launch", forge.spec("scripts: {show: {run: show.py, preload: []}}"))
    assert actors.__file__ in logs(forge)
    forge.write("actors.py", "")
    forge.ok("launch", forge.spec("scripts: {show: {run: show.py, preload: []}}"))
    assert str(forge.folder / "actors.py") in logs(forge)


def test_an_interpreter_without_forgectl_has_it(forge: Forge) -> None:
    """As on ssh hosts: there, and under another `python:`, forgectl is not installed."""
    paths = "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    finders = "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]"
    forge.write("show.py", f"import sys; {paths}; {finders}\nimport actors; print(actors.__file__)")
    forge.ok("launch", forge.spec("scripts: {show: {run: show.py, preload: []}}"))
    assert actors.__file__ in logs(forge)


@pytest.mark.parametrize(
    ("target", "said"),
    [("actors.trainer:Trainer", "no module 'actors.trainer'"), ("actors:Trainer", "actors.py has no class 'Trainer'")],
)
def test_what_hides_a_ready_made_actor_is_named(forge: Forge, target: str, said: str) -> None:
    forge.write("actors.py", "")
    done = forge.run("launch", forge.spec(SPEC.replace("TARGET", target)))
    assert done.returncode == 65
    assert f"actors.trainer.class: {said}: {forge.folder / 'actors.py'} hides forgectl's package actors" in done.stderr
    assert "give that file another name" in done.stderr
