"""Runs the tests of commands with the lowest and the newest dependencies that pyproject.toml allows: `make matrix`.

Each of the two gets an environment of its own, without torch, which is removed at the end. It needs uv and an index.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
"""Which versions of forgectl's own dependencies are taken, as uv says it. Theirs are the newest that fit."""
EXTRA = "actors"
TOOLS = ("pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "packaging", "py-spy", "setuptools")
TESTS = (
    "tests/unit/cli",
    "tests/unit/spec",
    "tests/unit/wire",
    "tests/process/test_manners.py",
    "tests/process/test_hands.py",
    "tests/process/test_completion.py",
    "tests/process/test_launch.py",
    "tests/unit/messages",
)
"""What is nearest to the dependencies: command lines, specs, tables, and messages of actors."""


class Failed(Exception):
    """A command has failed, for a reason that it has printed."""


def uv(*words: str | Path) -> list[str | Path]:
    """A command line of uv."""
    return [Path(sys.executable).with_name("uv"), "--quiet", *words]


def environment(folder: Path, resolution: str, python: str) -> Path:
    """Install forgectl into a new environment below `folder`; returns its interpreter. Raises Failed."""
    pins, made = folder / "pins.txt", folder / "environment"
    interpreter = made / "bin/python"
    _run(uv("venv", "--python", python, made))
    choice = ("--resolution", resolution, "--extra", EXTRA, "--python", interpreter)
    _run(uv("pip", "compile", *choice, "--no-annotate", "--no-header", "--output-file", pins, TOP / "pyproject.toml"))
    print(" ".join(pins.read_text().split()), flush=True)
    into = ("--python", interpreter)
    _run(uv("pip", "install", *into, "--requirements", pins))
    _run(uv("pip", "install", *into, "--no-deps", "--editable", TOP))
    _run(uv("pip", "install", *into, "--constraints", pins, *TOOLS))
    _run(uv("pip", "check", *into))
    return interpreter


def _run(argv: list[str | Path]) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FORGE", "VIRTUAL_ENV"))}
    if code := subprocess.run(argv, cwd=TOP, env=env, check=False).returncode:
        raise Failed(f"{' '.join(map(str, argv))} ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter to try; default: this one")
    parser.add_argument("--only", choices=RESOLUTIONS, help="one of the two")
    options = parser.parse_args()
    failed = []
    for name in [options.only] if options.only else RESOLUTIONS:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="forgectl-matrix-") as folder:
            try:
                interpreter = environment(Path(folder), RESOLUTIONS[name], options.python)
                _run([interpreter, "-m", "pytest", "-q", "-n", "2", *TESTS])
            except Failed as e:
                print(e, file=sys.stderr, flush=True)
                failed.append(name)
    if failed:
        sys.exit(f"fails with the {' and the '.join(failed)} dependencies")


if __name__ == "__main__":
    main()
