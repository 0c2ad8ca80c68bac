"""Where pyzmq is not installed, everything but actors works, and actors say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forgectl.hosts.installation import install_command

WITHOUT = "import sys; sys.modules['zmq'] = None; "
ACTORS = {
    "actor": "actors: {one: {class: mine:Mine}}",
    "service": "services: {one: {class: mine:Mine}}",
    "both, and a driver": "{actors: {a: &a {class: mine:Mine}}, services: {b: *a}, driver: {run: main.py}}",
}
MINE = "from forgectl import ForgeActor\nclass Mine(ForgeActor): ...\n"


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FORGECTL_HOME": str(folder / "home"), "NO_COLOR": "1"}
    argv = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(argv, capture_output=True, text=True, cwd=folder, env=env, timeout=60, check=False)


def _forgectl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _python(f"from forgectl.cli import main; sys.argv[1:] = {list(arguments)!r}; main()", folder)


@pytest.mark.parametrize("command", ["launch", "plan"])
@pytest.mark.parametrize("spec", ACTORS)
def test_a_spec_with_actors_is_refused_before_anything_is_started(tmp_path: Path, spec: str, command: str) -> None:
    (tmp_path / "main.py").write_text("")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "spec.yaml").write_text(ACTORS[spec])
    result = _forgectl(tmp_path, command, "spec.yaml")
    assert (result.returncode, result.stdout) == (69, "")
    assert f"actors and services need pyzmq, which {sys.executable} does not have" in result.stderr
    assert f"hint: {install_command(sys.executable, 'actors', ['pyzmq'])}\n" in result.stderr
    assert not (tmp_path / "home").exists()


def test_scripts_and_meshes_of_another_interpreter_are_planned(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("")
    (tmp_path / "mine.py").write_text(MINE)
    other = "python: /usr/bin/python3"
    actor = f"{{class: mine:Mine, {other}}}"
    spec = f"scripts: {{s: {{run: main.py}}}}\nactors: {{a: {actor}}}\ndriver: {{run: main.py, {other}}}"
    (tmp_path / "spec.yaml").write_text(spec)
    assert _forgectl(tmp_path, "plan", "spec.yaml").returncode == 0


def test_the_class_says_how_to_install_it(tmp_path: Path) -> None:
    result = _python("from forgectl import ForgeError, endpoint; from forgectl import ForgeActor", tmp_path)
    assert result.returncode == 1
    *_, last = result.stderr.splitlines()
    cure = install_command(sys.executable, "actors", ["pyzmq"])
    assert last.endswith(f"NotInstalledError: actors and services need pyzmq: {cure}")


def test_it_is_an_import_error_and_one_of_ours(tmp_path: Path) -> None:
    code = "import forgectl\ntry:\n  forgectl.get\nexcept ImportError as e: print(isinstance(e, forgectl.ForgeError))"
    assert _python(f"exec({code!r})", tmp_path).stdout.strip() == "True"
