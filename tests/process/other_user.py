"""A real second user of this machine, who runs intruder.py; a test fails loudly where there can be none."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS

NOBODY = 65534


def as_user(uid: int) -> list[str]:
    """What goes before a command of this interpreter that this user is to run."""
    if uid:
        _is_open_to_others()
    return _setpriv(uid)


def _setpriv(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


@functools.cache
def _is_open_to_others() -> None:
    """Fail where only its owner may run this interpreter, as below a private home."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.fail("a second user takes root, and setpriv of util-linux")
    tried = subprocess.run(
        [*_setpriv(NOBODY), sys.executable, "-c", ""], capture_output=True, text=True, cwd="/", check=False
    )
    if tried.returncode:
        pytest.fail(f"a second user takes an interpreter that others may run: {tried.stderr.strip()}")


@contextlib.contextmanager
def another_user(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """intruder.py, run by nobody; it is over when this block is."""
    with tempfile.TemporaryDirectory(prefix="forge-intruder-") as folder:  # where that user can read it
        Path(folder).chmod(0o755)
        program = Path(shutil.copy(PROGRAMS / "intruder.py", folder))
        program.chmod(0o644)
        argv = [*as_user(NOBODY), sys.executable, str(program)]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*argv, *map(str, arguments)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd="/"
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def as_another_user(*arguments: object, told: Any = None) -> Any:
    """What intruder.py says, run by nobody to its end with `told` on its standard input."""
    with another_user(*arguments) as process:
        out, err = process.communicate(json.dumps(told), timeout=60)
        assert process.returncode == 0, err
        return json.loads(out)


@contextlib.contextmanager
def listening(*paths: object) -> Iterator[list[int]]:
    """Nobody listens at these paths in this block; after it the list has how many bytes they were told."""
    found: list[int] = []
    with another_user("listen", *paths) as process:
        assert process.stdout
        assert process.stdout.readline() == '"listening"\n', process.communicate()
        yield found
        out, err = process.communicate("", timeout=60)
        assert process.returncode == 0, err
        found.append(json.loads(out))
