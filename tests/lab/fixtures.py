"""Fixtures: `lab`, shared by the tests of one process and whole at the start of each; `make_lab` for special ones."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.lab import Lab
from tests.lab.machine import ENVIRONMENT
from tests.lab.network import MACHINE

PROGRAMS = ("ip", "nft", "nsenter", "ssh", "ssh-keygen", "sshd")


@functools.cache
def obstacle() -> str | None:
    """Why this machine cannot hold a lab; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the lab of ssh hosts needs Linux and root"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=ENVIRONMENT["PATH"])]:
        return f"the lab of ssh hosts needs {', '.join(missing)}: run tests/lab/install.sh as root"
    probe = subprocess.run([sys.executable, "-I", "-S", str(MACHINE), "probe"], capture_output=True, text=True)
    if probe.returncode:
        return f"the lab of ssh hosts needs a kernel and rights to make namespaces: {probe.stderr.strip()[-300:]}"
    return None


def require_lab() -> None:
    """Skip the test, loudly, where no lab can be; fail it where CI is set, whose point is to run it."""
    if reason := obstacle():
        if os.environ.get("CI"):
            pytest.fail(reason)
        warnings.warn(f"SKIPPED: {reason}", stacklevel=2)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def standing_lab() -> Iterator[Lab]:
    """The lab behind `lab`."""
    require_lab()
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(standing_lab: Lab) -> Iterator[Lab]:
    """Three ssh hosts, whole; the test fails if it leaves a process there. Name it before `forge`, to end after it."""
    standing_lab.heal()
    yield standing_lab
    left = standing_lab.left()
    assert not left, f"processes are left on the lab's hosts: {left}"


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs with options of `Lab`; closed at the end, when nothing may be left running there."""
    require_lab()
    made: list[Lab] = []

    def make(*arguments: Any, **options: Any) -> Lab:
        made.append(Lab(*arguments, **options))
        return made[-1]

    yield make
    left: list[dict[str, dict[int, str]]] = []
    for lab in made:
        try:
            if lab.folder.exists():  # else the test closed it
                left.append(lab.left())
        finally:
            lab.close()
    assert not any(left), f"processes are left on the lab's hosts: {left}"
