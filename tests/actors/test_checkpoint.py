"""A checkpoint is complete or not there, the newest whole one is loaded, and errors name path and cause."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.checkpoint import CheckpointError, Checkpoints, checkpoints_around, read_manifest

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state(value: float = 0.0) -> dict[str, Any]:
    return {"model": {"w": torch.full((100,), value)}, "optimizer": {"param_groups": {"lr": value}}}


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    """Checkpoints of some steps, whose weights are their number."""
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, 10 * step, state(step), {"row": step})
    checkpoints.wait()
    return checkpoints


def step_of(path: Path | None) -> int | None:
    return None if path is None else read_manifest(path).step


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "new" / "folder", 120)
    path = checkpoints.newest()
    assert path == tmp_path / "new" / "folder" / "step-000120"
    assert checkpoints.written == 120
    into = state()
    manifest, extra = Checkpoints(path.parent).load(path, into)
    assert (manifest.step, manifest.version, manifest.ranks, extra) == (120, 1200, 1, {"row": 120})
    assert into["model"]["w"].tolist() == [120.0] * 100
    assert into["optimizer"]["param_groups"]["lr"] == 120
    assert {p.name for p in path.parent.iterdir()} == {"step-000120", "latest"}


def test_weights_that_change_after_the_call_are_not_in_it(tmp_path: Path) -> None:
    checkpoints, changing = Checkpoints(tmp_path), state(1.0)
    path = checkpoints.save(1, 0, changing)
    changing["model"]["w"].fill_(2.0)
    checkpoints.wait()
    into = state()
    checkpoints.load(path, into)
    assert into["model"]["w"].unique().tolist() == [1.0]


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000003", "step-000004"]
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, 0)


def cut(path: Path) -> None:
    """As after a power failure."""
    data = next(path.glob("*.distcp"))
    os.truncate(data, data.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage", [cut, lambda p: (p / "extra.pt").unlink(), lambda p: (p / "checkpoint.json").unlink()]
)
def test_one_cut_short_is_named_and_the_one_before_is_used(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    damage(tmp_path / "step-000002")
    assert step_of(checkpoints.newest()) == 1
    assert f"checkpoint {tmp_path / 'step-000002'} is cut short" in caplog.text
    with pytest.raises(CheckpointError, match="step-000002 is cut short"):
        checkpoints.load(tmp_path / "step-000002", state())


def test_without_a_whole_one_the_end_has_a_cause(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    cut(tmp_path / "step-000001")
    shutil.rmtree(tmp_path / "step-000002")
    with pytest.raises(CheckpointError, match=r"step-000001 is cut short: \S+ has [\d,]+ of [\d,]+ bytes.*start anew"):
        checkpoints.newest()


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    left = tmp_path / ".step-000007.partial"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    assert Checkpoints(tmp_path).newest() is None
    saved(tmp_path, 8)
    assert not left.exists()


def test_latest_may_be_set_back_and_later_steps_are_written_anew(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3)
    (tmp_path / "latest").write_text("step-000002\n")
    assert step_of(checkpoints.newest()) == 2
    checkpoints.save(3, 77, state(9))
    checkpoints.wait()
    assert read_manifest(tmp_path / "step-000003").version == 77
    assert step_of(checkpoints.newest()) == 3


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step-000001 could not be loaded: .*other"):
        checkpoints.load(tmp_path / "step-000001", {"model": {"other": torch.zeros(3)}})


def test_the_highest_version_outlives_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.highest_version() == 0
    checkpoints.set_highest_version(41)
    assert Checkpoints(tmp_path / "run").highest_version() == 41


def test_folders_of_checkpoints_are_known_as_such(tmp_path: Path) -> None:
    saved(tmp_path / "run", 1)
    assert checkpoints_around(tmp_path / "run" / "step-000001" / "x") == tmp_path / "run"
    assert checkpoints_around(tmp_path / "run") == tmp_path / "run"
    assert checkpoints_around(tmp_path / "export") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", folder], capture_output=True).returncode:
        pytest.skip("a full disk takes the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_with_path_and_cause_and_spoils_nothing(small_disk: Path) -> None:
    checkpoints = saved(small_disk, 1)
    large = {"model": {"w": torch.zeros(100_000)}}
    path = checkpoints.save(2, 0, large)
    with pytest.raises(
        CheckpointError, match=rf"{path.parent}/\.step-000002\.partial could not be written.*MB free"
    ) as e:
        checkpoints.wait()
    assert "No space left on device" in str(e.value)
    assert step_of(checkpoints.newest()) == 1
    checkpoints.save(3, 0, state(3))
    checkpoints.wait()
    assert step_of(checkpoints.newest()) == 3


def test_a_failure_in_the_background_is_raised_once_it_is_known(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, 0, state(), extra=lambda: None)  # a lambda cannot be pickled
    assert checkpoints.writing
    checkpoints.writing.exception()  # waits
    with pytest.raises(CheckpointError, match="step-000001"):
        checkpoints.check()
    checkpoints.check()
