"""The types that users see: right uses have theirs, wrong uses are errors, the examples of the pages are right.

mypy and pyright look at the same files, as strictly as they can. basedpyright is pyright with its Node.js in a wheel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.types.examples import examples_in, module_of

TOP = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGES = [page for page in [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))] if examples_in(page)]
Errors = dict[tuple[str, int], dict[str, str]]
"""(Name of a file, line) → code → message of the errors there."""


def by_mypy(folder: Path) -> Errors:
    settings = folder / "mypy.ini"
    settings.write_text("[mypy]\n[mypy-transformers.*]\nfollow_imports = skip\n")  # reading it takes minutes
    argv = [sys.executable, "-m", "mypy", "--strict", "--python-version=3.10", f"--config-file={settings}"]
    argv += ["--no-error-summary", "--hide-error-context", f"--cache-dir={TOP / '.mypy_cache/of_users'}", "."]
    env = os.environ | {"MYPYPATH": str(TOP)}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors: Errors = {}
    for file, line, text, code in re.findall(
        r"^(\w+\.py):(\d+): error: (.*)  \[([\w-]+)\]$", done.stdout, re.MULTILINE
    ):
        errors.setdefault((file, int(line)), {})[code] = text
    return errors


def by_pyright(folder: Path) -> Errors:
    config = {"typeCheckingMode": "strict", "pythonVersion": "3.10", "include": ["."], "extraPaths": [str(TOP)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    argv = [
        sys.executable,
        "-m",
        "basedpyright",
        f"--pythonpath={sys.executable}",
        f"--project={folder}",
        "--outputjson",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(list(folder.glob("*.py")))
    errors: Errors = {}
    for one in found["generalDiagnostics"]:
        place = Path(one["file"]).name, one["range"]["start"]["line"] + 1
        errors.setdefault(place, {})[one.get("rule", "syntax")] = one["message"]
    return errors


def marks(file: Path, which: int) -> dict[int, str]:
    """Line → code that the checker must find there: of mypy, or of pyright."""
    found = enumerate(file.read_text().splitlines(), 1)
    marked = {line: text.partition("# wrong: ")[2].split(", ") for line, text in found if "# wrong: " in text}
    return {line: codes[which] for line, codes in marked.items()}


@pytest.mark.timeout(300)  # both read all of forgectl first
@pytest.mark.parametrize(("check", "which"), [(by_mypy, 0), (by_pyright, 1)], ids=["mypy", "pyright"])
def test_right_uses_wrong_uses_and_the_examples(tmp_path: Path, check: Callable[[Path], Errors], which: int) -> None:
    for name in ("right_uses.py", "wrong_uses.py"):
        shutil.copy(HERE / name, tmp_path)
    assert {"README.md", "coming-from-torchforge.md"} <= {page.name for page in PAGES}
    for page in PAGES:
        (tmp_path / f"of_{re.sub(r'[^a-z]', '_', page.stem.lower())}.py").write_text(module_of(page))
    errors = check(tmp_path)
    expected = {("wrong_uses.py", line): code for line, code in marks(HERE / "wrong_uses.py", which).items()}
    assert len(expected) > 40
    lines = {file.name: file.read_text().splitlines() for file in tmp_path.glob("*.py")}
    unexpected = [f"{at}: {lines[at[0]][at[1] - 1]} {codes}" for at, codes in errors.items() if at not in expected]
    missed = [f"{at}: {code} {errors.get(at)}" for at, code in expected.items() if code not in errors.get(at, {})]
    assert not unexpected and not missed, "\n".join(["", *unexpected, "", *missed])
