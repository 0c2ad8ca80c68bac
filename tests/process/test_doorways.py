"""Sockets and run directories that somebody removes under a living run."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import Forge, processes_of, until

STAY = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}"


def remove(folder: Path) -> None:
    """Remove a folder in which a living run makes files meanwhile."""

    def removed() -> bool:
        try:
            shutil.rmtree(folder)
        except OSError:
            return not folder.exists()
        return True

    until(removed, f"{folder} to be removed")


def test_a_run_is_found_again_after_its_sockets_were_removed(forge: Forge) -> None:
    """As logging out does, which empties $XDG_RUNTIME_DIR."""
    run = forge.launch(STAY)
    before = processes_of(run).keys()
    remove(forge.home / "sockets")
    [document] = forge.status()
    assert (document["run"], document["state"]) == (run, "running")
    until(lambda: processes_of(run).keys() == before, "the end of whatever looked for them, and of nobody else")
    until((forge.home / "sockets" / run / "agent-0").exists, "the agent's socket")
    assert "2 × SIGTERM" in forge.ok("shutdown", "--run", run)


def test_a_run_ends_when_its_directory_is_removed(forge: Forge) -> None:
    run = forge.launch(STAY)
    remove(forge.run_dir(run))
    until(lambda: not processes_of(run), "the end of the run")
    assert forge.status() == []
