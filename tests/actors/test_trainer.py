"""The trainer's actor: in this process with one rank, and as meshes of real ranks."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.models import load_model
from actors.trainer import Trainer
from actors.types import StaleBatch
from actors.weights import WeightStore
from tests.actors.episodes import TINY, episodes
from tests.conftest import Forge
from tests.process.actor_scripts import bring, play

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def made(**options: Any) -> Trainer:
    """One rank, set up."""
    trainer = Trainer(TINY, **{"dtype": "float32", **options})
    trainer.setup()
    return trainer


# ------------------------------------------------------------ one rank, without a mesh


def test_a_step_is_trained_published_and_exported(tmp_path: Path) -> None:
    store = WeightStore("policy", folder=tmp_path / "weights")
    trainer = made(weights=store, optimizer={"lr": 0.1})
    before = load_model(TINY, device="cpu").module.state_dict()
    assert trainer.train_step([episodes()]).step == 1
    assert trainer.push_weights(wait=True) == 1
    assert trainer.push_weights(9, wait=True) == 9
    assert trainer.push_weights(wait=True) == 10
    trainer.export(str(tmp_path / "export"))
    exported, published = load_model(tmp_path / "export", device="cpu").module.state_dict(), store.fetch().tensors
    assert published.keys() == exported.keys() == before.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensor, published[name])
        assert not torch.equal(tensor, before[name])


def test_a_batch_for_another_version_of_the_weights_is_refused(tmp_path: Path) -> None:
    store = WeightStore("policy", folder=tmp_path)
    trainer = made(weights=store)
    version = trainer.push_weights()
    assert trainer.train_step(episodes(), version=version).step == 1
    again = made(weights=store)  # as after a restart of the mesh
    with pytest.raises(StaleBatch, match="for version 1 of the weights, but the trainer has version 2"):
        again.train_step(episodes(), version=version)
    assert asyncio.run(again.get_status()).step == 0


def test_gradients_and_step_may_be_asked_for_apart() -> None:
    apart, together = made(), made()
    expected = together.train_step(episodes())
    loss, metrics = apart.forward_backward(episodes())
    assert loss == expected.loss
    assert {**metrics, **apart.optim_step()} == expected.metrics
    apart.forward_backward(episodes())
    apart.clear_gradients()
    assert all(p.grad is None for p in apart._training.module.parameters())


def test_it_saves_at_times_and_resumes_by_itself(tmp_path: Path) -> None:
    options = {"checkpoint": str(tmp_path / "run"), "weights": WeightStore("w", folder=tmp_path / "w")}
    first = made(save_every=2, keep=1, **options)
    for _ in range(5):
        first.train_step(episodes())
        first.push_weights()
    first.__cleanup__(None)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["highest_version", "latest", "step-000004"]
    second = made(**options)
    status = asyncio.run(second.get_status())
    assert (status.step, status.version, status.resumed_from) == (4, 6, str(tmp_path / "run" / "step-000004"))
    second.save({"row": 3}, wait=True)
    second.train_step(episodes())
    assert second.load() == 4
    assert asyncio.run(second.get_extra()) == {"row": 3}
    assert second.push_weights() == 8


def test_versions_stay_used_without_checkpoints_and_in_a_new_run(tmp_path: Path) -> None:
    store = WeightStore("w", folder=tmp_path / "w")
    made(weights=store).push_weights(3, wait=True)
    again = made(weights=store)  # as after a restart of the mesh
    assert asyncio.run(again.get_status()).version == 4
    again.__cleanup__(None)
    checkpoint = str(tmp_path / "run")
    made(weights=store, checkpoint=checkpoint).__cleanup__(None)
    fresh = WeightStore("w", folder=tmp_path / "of another run")
    assert made(weights=fresh, checkpoint=checkpoint).push_weights() > 5


def test_weights_are_streamed_to_another_host_once_they_are_written(tmp_path: Path) -> None:
    trainer = made(weights=WeightStore("w", folder=tmp_path / "w"))
    version = trainer.push_weights()

    async def read() -> list[Any]:
        return [part async for part in trainer.read_weights("w", version)]

    head, *parts = asyncio.run(read())
    assert head == (version, len(b"".join(parts)))
    assert b"".join(parts) == (tmp_path / "w" / "1.safetensors").read_bytes()

    async def read_another() -> None:
        await anext(trainer.read_weights("other", 1))

    with pytest.raises(ValueError, match="no store of weights that is named 'other'"):
        asyncio.run(read_another())


def test_what_fails_in_the_background_is_raised_by_the_next_call(tmp_path: Path) -> None:
    trainer = made(weights=WeightStore("w", folder=tmp_path / "w"))
    trainer.push_weights(wait=True)
    shutil.rmtree(tmp_path / "w")
    (tmp_path / "w").write_text("in the way")
    assert trainer._publisher is not None
    trainer._publisher.writing = trainer._publisher._thread.submit(trainer._publisher.store.publish, 2, {})
    trainer._publisher.writing.exception()
    with pytest.raises(OSError, match="w"):
        trainer.train_step(episodes())


def test_mistakes_are_named(tmp_path: Path) -> None:
    for wrong, message in (
        ({"parallel": "tensor"}, "'tensor'; it must be 'fsdp' or 'ddp'"),
        ({"save_every": 3}, "checkpoint, the folder to save to, is not given"),
        ({"dtype": "float16"}, "'float16'; it must be 'auto' or one of"),
        ({"loss": "grop"}, "grpo"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**wrong)
    trainer = made()
    for call in (trainer.save, trainer.load):
        with pytest.raises(ValueError, match="give it checkpoint=FOLDER"):
            call()
    with pytest.raises(ValueError, match="give it weights=NAME"):
        trainer.push_weights()
    with pytest.raises(ValueError, match="for 2 ranks, but the mesh has 1"):
        trainer.train_step([episodes(), episodes()])
    trainer = made(checkpoint=str(tmp_path))
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        trainer.load()
    trainer.save(wait=True)
    with pytest.raises(ValueError, match="export to another folder"):
        trainer.export(str(tmp_path / "step-000000" / "export"))


# ------------------------------------------------------------ real ranks


def train(forge: Forge, scene: str, *, code: int = 0, seconds: float = 90.0) -> subprocess.CompletedProcess[str]:
    bring(forge)
    shutil.copy(Path(__file__).with_name("episodes.py"), forge.folder)
    forge.env["OMP_NUM_THREADS"] = "1"
    return play(forge, f"train.py {scene}", code=code, seconds=seconds)


@pytest.mark.timeout(300)  # five meshes that import torch, beside other tests
def test_loss_and_gradients_are_the_same_for_any_number_of_ranks(forge: Forge) -> None:
    train(forge, "all_numbers_of_ranks_train_alike", seconds=240)


def test_another_number_of_ranks_resumes(forge: Forge) -> None:
    train(forge, "another_number_of_ranks_resumes")


def test_a_killed_rank_is_replaced_resumes_and_publishes_a_higher_version(forge: Forge) -> None:
    train(forge, "a_killed_rank_is_replaced_and_resumes")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_error_on_one_rank_ends_the_launch(forge: Forge, parallel: str) -> None:
    result = train(forge, f"an_error_on_one_rank_is_raised {parallel}", code=1)
    assert result.stderr.rstrip().endswith("ArithmeticError: this loss does not like rank 1")


def test_a_checkpoint_that_cannot_be_written_ends_the_launch(forge: Forge) -> None:
    full = forge.folder / "disk"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", full], capture_output=True).returncode:
        pytest.skip("a full disk takes the right to mount one")
    try:
        result = train(forge, f"a_full_disk_ends_it {full}", code=1)
        assert "CheckpointError: checkpoint" in result.stderr
        assert "MB free" in result.stderr
    finally:
        subprocess.run(["umount", "-l", full], check=True)
