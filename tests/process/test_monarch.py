"""Code that was written with Monarch's names, and Monarch's own meshes beside ours.

Monarch listens on abstract Unix sockets, to which every user of a machine may connect; they end at the border of a
network namespace. So whatever starts it here runs in one of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.conftest import Forge, processes_with
from tests.process.actor_scripts import bring, to_play

pytest.importorskip("monarch", reason="without torchmonarch nothing tests code that was written for Monarch")

ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def play_alone(forge: Forge, scene: str) -> None:
    """Run a script in a network namespace of its own, whose assertions must hold."""
    if os.getuid() != 0 or not shutil.which("ip"):
        pytest.fail("a network namespace takes root, and the package iproute2")
    bring(forge, "theirs.py", "late.py", "play_monarch.py")
    argv = [*ALONE, *forge.argv()[:1], *to_play(forge, scene)]
    done = subprocess.run(argv, cwd=forge.folder, env=forge.env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes_with(f"FORGECTL_HOME={forge.home}") == {}


SCENES = [
    "monarchs_decorators_and_ranks",
    "names_that_are_imported_during_a_call",
    "monarchs_own_meshes_beside_ours",
    "monarch_is_refused_what_is_ours",
]


@pytest.mark.parametrize("first", ["forgectl", "monarch"])
@pytest.mark.parametrize("scene", SCENES)
def test_monarchs_names_and_meshes(forge: Forge, scene: str, first: str) -> None:
    """Whatever the script has imported first."""
    play_alone(forge, f"play_monarch{'_first' if first == 'monarch' else ''}.py {scene}")


def test_nothing_of_ours_imports_it(forge: Forge) -> None:
    process = forge.python(*to_play(forge, "look_for_monarch.py"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
