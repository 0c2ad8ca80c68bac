"""Disks that are full, small, read-only or somebody else's; and logs that would fill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Forge, processes_of, until

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount and give files away")


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`; skips loudly where none may be mounted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Forge]:
    """A forgectl whose home is a disk of 1 MB."""
    if os.getuid() != 0:
        pytest.skip("NOT TESTED: only root can mount a small disk")
    forge = Forge(tmp_path)
    with _mounted(forge.home, "size=1m,mode=0700"):
        yield forge
        forge.close()


def _fill(folder: Path) -> Path:
    """Leave no byte free."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


def test_a_rank_that_fills_the_disk_goes_on_and_ends_well(small: Forge) -> None:
    stay = "stay: {run: PROGRAMS/stay.py, preload: []}"
    run = small.launch(f"scripts: {{flood: {{run: PROGRAMS/flood.py 20, preload: []}}, {stay}}}")
    until(lambda: small.mesh(run, "flood")["state"] in ("succeeded", "failed"), "the end of the flood")
    mesh = small.mesh(run, "flood")
    assert (mesh["state"], mesh["ranks"][0]["exit_code"]) == ("succeeded", 0)
    assert small.mesh(run, "stay")["state"] == "running"
    log = Path(mesh["ranks"][0]["log"])
    text = log.read_bytes()
    assert b"disk full]" in text or "disk is full" in " ".join(mesh["notices"]), "the loss is marked"
    assert log.stat().st_blocks * 512 <= 1 << 20
    assert small.run("logs", "flood", "-n", "3").returncode == 0
    small.ok("shutdown", "--all")
    until(lambda: small.document(run)["ended_at"], "the end")


def test_a_launch_onto_a_full_disk_is_refused(small: Forge) -> None:
    (small.home / "runs").mkdir(mode=0o700)
    (small.home / "sockets").mkdir(mode=0o700)
    filler = _fill(small.home)
    result = small.run("launch", small.spec("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}"), "-d")
    assert result.returncode == 75, result.stderr
    assert "No space left on device" in result.stderr
    assert "hint: free some space" in result.stderr
    assert "Traceback" not in result.stderr
    assert small.runs() == []
    filler.unlink()
    run = small.launch("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}")
    assert small.document(run)["state"] == "running"


def test_a_run_survives_a_disk_that_fills_up_meanwhile(small: Forge) -> None:
    """What happens is lost on disk, not in memory: status and shutdown go on working, and nothing comes back."""
    run = small.launch("scripts: {stay: {run: PROGRAMS/stay.py, procs: 24, preload: [], restart: {max: 3}}}")
    filler = _fill(small.home)
    assert small.document(run)["state"] == "running"
    os.kill(small.mesh(run, "stay")["ranks"][3]["pid"], signal.SIGKILL)
    small.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] in ("running", "failed"))
    result = small.run("shutdown", "stay")
    assert result.returncode == 0, result.stderr
    assert "24 × " in result.stdout
    until(lambda: not processes_of(run), "the end of its processes")
    for command in (["status"], ["status", "-a", "--json"], ["logs", "stay"], ["shutdown", "--all"]):
        small.ok(*command)
    filler.unlink()
    assert small.until_ended(run)["state"] in ("stopped", "failed", "lost")


@needs_root
def test_a_read_only_home_is_refused(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    with _mounted(forge.home, "ro,size=1m,mode=0700"):
        result = forge.run("launch", forge.spec("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}"))
        assert result.returncode == 75, result.stderr
        assert "Read-only file system" in result.stderr
        assert "FORGECTL_HOME" in result.stderr
        assert forge.status() == []
        assert forge.ok("shutdown", "--all") == "nothing is running\n"
        forge.close()


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    forge.home.write_text("no folder")
    result = forge.run("launch", forge.spec("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}"))
    assert result.returncode == 75, result.stderr
    assert str(forge.home) in result.stderr
    assert "Traceback" not in result.stderr


def _refused(forge: Forge, folder: str) -> None:
    result = forge.run("launch", forge.spec("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}"))
    assert result.returncode == 77, result.stderr
    assert f"{forge.home / folder} must be a folder of yours with mode 0700" in result.stderr
    assert "or set FORGECTL_HOME to a folder of your own" in result.stderr
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("folder", ["runs", "sockets"])
@pytest.mark.parametrize("mode", [0o777, 0o750, 0o1777])
def test_folders_open_to_others_are_refused(forge: Forge, folder: str, mode: int) -> None:
    (forge.home / folder).mkdir(parents=True)
    (forge.home / folder).chmod(mode)
    _refused(forge, folder)
    (forge.home / folder).chmod(0o700)


@needs_root
@pytest.mark.parametrize("folder", ["runs", "sockets"])
def test_folders_of_another_user_are_refused(forge: Forge, folder: str) -> None:
    (forge.home / folder).mkdir(parents=True, mode=0o700)
    os.chown(forge.home / folder, 65534, 65534)
    _refused(forge, folder)
    os.chown(forge.home / folder, 0, 0)


@pytest.mark.parametrize("folder", ["runs", "sockets"])
def test_links_for_folders_are_refused(forge: Forge, folder: str) -> None:
    forge.home.mkdir()
    with tempfile.TemporaryDirectory() as elsewhere:
        (forge.home / folder).symlink_to(elsewhere)
        _refused(forge, folder)
        assert list(Path(elsewhere).iterdir()) == []
    (forge.home / folder).unlink()


def test_a_flood_is_capped_and_its_end_kept(forge: Forge) -> None:
    """300 MB through a log of 16 MiB: on disk never much more, the last lines right, the loss told of."""
    limit = 16 << 20
    spec = "log_limit: 16MiB\nscripts: {flood: {run: PROGRAMS/flood.py 300, preload: []}, "
    run = forge.launch(spec + "stay: {run: PROGRAMS/stay.py, preload: []}}")
    log = forge.run_dir(run) / "logs/flood/0/rank-0.log"
    until(lambda: forge.mesh(run, "flood")["state"] in ("succeeded", "failed"), "the end of the flood")
    assert forge.mesh(run, "flood")["state"] == "succeeded"
    assert log.stat().st_size > 290_000_000, "offsets stay as they were"
    until(lambda: log.stat().st_blocks * 512 <= limit, "the last trimming")
    lines = forge.ok("logs", "flood", "-n", "5", "--no-prefix").splitlines()
    assert lines[-1] == "the last line"
    assert [line[:8] for line in lines[:-1]] == [f"{n:08d}" for n in range(299_996, 300_000)]
    assert "dropped" in forge.ok("logs", "flood").split("\n", 1)[0]
    [notice, *_] = forge.mesh(run, "flood")["notices"]
    assert "log_limit" in notice
    assert "log_limit" in json.dumps(forge.status("-a"))
    assert "log_limit" in forge.ok("status", "flood")
