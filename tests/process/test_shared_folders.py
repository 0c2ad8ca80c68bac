"""The folders that a run's processes share on one host: who has them, and that nothing of them outlives the run."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.conftest import Forge, processes_of, until

SPEC = """
hosts: [{name: a, local: true}, {name: b, local: true}]
lease: 3s
scripts: {sharer: {run: PROGRAMS/share_a_folder.py, procs: 4, hosts: 2, preload: []}}
"""


def folders(forge: Forge, run: str) -> dict[str, set[str]]:
    """Each shared folder, in memory and on disk, with the names of the files in it."""
    found = [*Path(f"/dev/shm/forgectl-{os.getuid()}").glob(f"{run}-*[!k]"), *forge.run_dir(run).glob("shared/*")]
    return {str(f): {p.name for p in f.iterdir()} for f in found if f.is_dir()}


def launched(forge: Forge) -> str:
    run = forge.launch(SPEC)
    until(lambda: sorted(map(len, folders(forge, run).values())) == [2, 2, 2, 2], "the ranks' files")
    return run


def test_the_ranks_of_one_host_share_two_folders_that_end_with_the_run(forge: Forge) -> None:
    run = launched(forge)
    found = folders(forge, run)
    assert sorted(map(sorted, found.values())) == 2 * [["of-0", "of-1"]] + 2 * [["of-2", "of-3"]]
    for folder in found:
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    forge.ok("shutdown", "--run", run)
    assert folders(forge, run) == {}
    assert not list(Path("/dev/shm").glob(f"forgectl-*/{run}*"))
    assert not (forge.run_dir(run) / "shared").exists()


@pytest.mark.parametrize("roles", [("agent",), ("controller",), ("agent", "controller")])
def test_nothing_is_left_of_them_whoever_is_killed(forge: Forge, roles: tuple[str, ...]) -> None:
    run = launched(forge)
    found = forge.roles(run)
    for role in roles:
        for pid in found[role]:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_of(run), "the end of all processes")
    if roles == ("agent", "controller"):  # nobody is left to clean up, so the next run does
        other = forge.launch("scripts: {a: {command: sleep 3600}}", "--name", "other")
        forge.ok("shutdown", "--run", other)
    else:
        forge.status()
        forge.until_ended(run)
    assert folders(forge, run).keys() <= {str(f) for f in forge.run_dir(run).glob("shared/*")}
    assert not list(Path("/dev/shm").glob(f"forgectl-*/{run}*"))


def test_a_process_of_no_run_is_told_so(forge: Forge) -> None:
    program = forge.python("-c", "import forgectl; forgectl.shared_folder()")
    assert "this process belongs to no run" in program.communicate(timeout=60)[1]
