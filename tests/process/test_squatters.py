"""Another user who is first to make what a run will make in a folder that all may write: nothing of ours is harmed.

The names are foreseeable, so each test has a folder of its own mounted there: others use this machine's meanwhile.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.conftest import Forge
from tests.process.other_user import NOBODY

SHARE = """
import os, forgectl
from pathlib import Path
for on_disk in (False, True):
    folder = forgectl.shared_folder(on_disk=on_disk)
    assert folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o777 == 0o700
    (folder / f"of-{os.environ['RANK']}").write_text("x")
    print("shared in", folder, flush=True)
"""


def launched_where(forge: Forge, squat: str) -> subprocess.CompletedProcess[str]:
    """A launch to its end on a machine where nobody has done `squat` in /dev/shm, whose links anybody follows."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.fail("a second user with a /dev/shm of its own takes root, and unshare of util-linux")
    forge.write("share.py", SHARE)
    spec = forge.spec("scripts: {share: {run: share.py, procs: 2, preload: []}}")
    first = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh -ec '{squat}'"
    script = f'set -e; mount -t tmpfs -o mode=1777 none /dev/shm; {first}; exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *forge.argv("launch", spec)]
    return subprocess.run(
        argv, cwd=forge.folder, env=forge.env, capture_output=True, text=True, timeout=90, check=False
    )


def test_a_folder_in_memory_that_another_user_made_first_keeps_nobody_from_sharing(forge: Forge) -> None:
    name = f"/dev/shm/forgectl-{os.getuid()}"
    result = launched_where(forge, f"mkdir -m 777 {name}; mkdir -m 777 {name}/x; : > {name}/x.lock")
    assert result.returncode == 0, result
    [run] = forge.runs()
    assert result.stdout.count(f"shared in {forge.run_dir(run)}/shared/local") == 4
    assert "/dev/shm" not in result.stdout


def test_a_link_in_the_place_of_that_folder_leads_nobody_to_remove_what_is_there(forge: Forge) -> None:
    """A project of ours has a lock file and a folder of one name: so do the folders that runs have left in memory."""
    project = forge.folder / "project"
    kept = (project / "uv.lock", project / "uv" / "notes")
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ours")
    result = launched_where(forge, f"ln -s {project} /dev/shm/forgectl-{os.getuid()}")
    assert result.returncode == 0, result
    assert [path.read_text() for path in kept] == ["ours", "ours"]
    assert sorted(project.iterdir()) == [project / "uv", project / "uv.lock"]
