"""The reference model computes what a plain forward pass does, in any batches, and never follows the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.batches import Sequences, padded
from actors.checkpoint import Checkpoints
from actors.reference import ReferenceModel, logprobs_of
from tests.actors.episodes import TINY, episodes, tiny
from tests.actors.test_batches import alone

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_it_gives_the_log_probabilities_of_each_episode() -> None:
    reference = ReferenceModel(TINY, micro_batch_tokens=20)
    reference.setup()
    module = tiny(torch.float32)
    found = reference.logprobs(episodes(), 0.8)
    for row, one in zip(found, episodes(), strict=True):
        assert row.dtype == torch.float32
        torch.testing.assert_close(row, alone(module, one, 0.8).detach(), atol=1e-5, rtol=0)
    sequences = Sequences.of(episodes())
    table = reference.forward(sequences.input_ids, sequences.lengths, sequences.response_start, 0.8)
    torch.testing.assert_close(table, padded(found, 7), atol=1e-5, rtol=0)
    assert reference.logprobs([]) == []


def test_a_model_may_be_named_later(tmp_path: Path) -> None:
    reference = ReferenceModel()
    reference.setup()
    with pytest.raises(RuntimeError, match="no model yet"):
        reference.logprobs(episodes())
    reference.load(TINY)
    known = ReferenceModel(TINY)
    known.setup()
    assert all(map(torch.equal, reference.logprobs(episodes()), known.logprobs(episodes())))


@pytest.mark.parametrize("budget", [1, 16, None])
def test_the_split_into_micro_batches_changes_nothing(budget: int | None) -> None:
    whole = logprobs_of(tiny(), Sequences.of(episodes()), 1.0, None)
    torch.testing.assert_close(logprobs_of(tiny(), Sequences.of(episodes()), 1.0, budget), whole, atol=1e-6, rtol=0)


def test_the_folder_of_the_trainers_checkpoints_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    path = checkpoints.save(3, 1, {"model": {"w": torch.zeros(2)}})
    checkpoints.wait()
    (tmp_path / "link").symlink_to(path)
    for wrong in (path, tmp_path / "run", path / "model", tmp_path / "link"):
        with pytest.raises(ValueError, match="where a trainer keeps its checkpoints"):
            ReferenceModel(str(wrong))
        with pytest.raises(ValueError, match="where a trainer keeps its checkpoints"):
            ReferenceModel().load(str(wrong))
    ReferenceModel(str(tmp_path / "initial"))
