"""Trainers of real ranks: `python train.py FUNCTION …`. Tests copy it beside playing.py and episodes.py."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from episodes import TINY, episodes, tiny  # type: ignore[import-not-found]

from actors.checkpoint import read_manifest
from actors.losses import Batch, Totals
from actors.trainer import Trainer
from actors.training import Training, TrainingOptions
from actors.types import StepResult
from actors.weights import WeightStore
from forgectl import ActorDied
from playing import HERE, pids_of, raised

SGD = {"kind": "sgd", "lr": 1.0}  # weights then change by the gradients themselves


def store(name: str) -> WeightStore:
    return WeightStore(name, folder=HERE / "weights" / name)


async def published(trainer: Trainer, name: str) -> dict[str, torch.Tensor]:
    version = (await trainer.push_weights.call(wait=True)).get(0)
    return store(name).fetch(version).tensors


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0)


async def _two_steps(
    ranks: int, parallel: Any, budget: int | None, dtype: str
) -> tuple[list[StepResult], dict[str, torch.Tensor]]:
    name = f"{parallel}-{ranks}-{dtype}"
    trainer = await Trainer.options(procs=ranks, mesh_name=name).as_actor(
        TINY, {"kind": "dapo", "beta": 0.05}, SGD, max_norm=0.8, dtype=dtype, parallel=parallel,
        micro_batch_tokens=budget, weights=store(name),
    )  # fmt: skip
    steps = []
    for data in (episodes(11), [episodes(3), *([[]] * (ranks - 2)), episodes(1)]):  # in the second, ranks are idle
        results = await trainer.train_step.call(data)
        assert all(result == results.get(0) for result in results.values())
        steps.append(results.get(0))
    weights = await published(trainer, name)
    await trainer.shutdown()
    return steps, weights


async def all_numbers_of_ranks_train_alike() -> None:
    plain = Training(tiny(), TrainingOptions({"kind": "dapo", "beta": 0.05}, SGD, max_norm=0.8))
    expected = [plain.train_step(data) for data in (episodes(11), [*episodes(3), *episodes(1)])]
    right = {name: tensor.clone() for name, tensor in plain.tensors()}
    for ranks, parallel, budget, dtype in (
        (2, "ddp", 20, "float64"),
        (2, "fsdp", 20, "float64"),
        (4, "ddp", None, "float64"),
        (4, "fsdp", 9, "float64"),
        (2, "fsdp", 20, "float32"),
    ):
        steps, weights = await _two_steps(ranks, parallel, budget, dtype)
        tolerance = 1e-6 if dtype == "float64" else 1e-4
        for found, wanted in zip(steps, expected, strict=True):
            assert abs(found.loss - wanted.loss) < tolerance, (parallel, ranks, found, wanted)
            assert found.metrics.keys() == wanted.metrics.keys()
            for name, value in wanted.metrics.items():
                assert abs(found.metrics[name] - value) < tolerance, (parallel, ranks, name, found, wanted)
        assert_equal({name: tensor.double() for name, tensor in weights.items()}, right, tolerance)


async def another_number_of_ranks_resumes() -> None:
    def made(ranks: int, parallel: Any) -> Any:
        return Trainer.options(procs=ranks, mesh_name=f"t{ranks}").as_actor(
            TINY, optimizer={"lr": 0.05}, dtype="float64", parallel=parallel, checkpoint=str(HERE / "run"),
            weights=store(f"t{ranks}"),
        )  # fmt: skip

    first = await made(2, "fsdp")
    await first.train_step.call(episodes())
    path = (await first.save.call({"row": 12}, wait=True)).get(0)
    assert read_manifest(Path(path)).ranks == 2
    expected = (await first.train_step.call(episodes())).get(0)
    weights = await published(first, "t2")
    await first.shutdown()
    for ranks, parallel in ((1, "ddp"), (3, "fsdp")):
        again = await made(ranks, parallel)
        status = await again.slice(procs=0).get_status.call_one()
        assert (status.step, status.resumed_from) == (1, path), status
        assert await again.slice(procs=0).get_extra.call_one() == {"row": 12}
        found = (await again.train_step.call(episodes())).get(0)
        assert abs(found.loss - expected.loss) < 1e-9
        assert found.step == 2
        assert_equal(await published(again, f"t{ranks}"), weights, 1e-9)
        await again.shutdown()


async def a_killed_rank_is_replaced_and_resumes() -> None:
    trainer = await Trainer.options(procs=2, restart=1, mesh_name="trainer").as_actor(
        TINY, checkpoint=str(HERE / "run"), weights=store("policy"), optimizer={"lr": 0.05}
    )
    one = trainer.slice(procs=0)
    for _ in range(2):
        await trainer.train_step.call(episodes())
        await trainer.push_weights.call(wait=True)
    await trainer.save.call({"row": 7}, wait=True)
    await trainer.train_step.call(episodes())
    lost = await published(trainer, "policy")
    assert (await one.get_status.call_one()).version == 3
    step = trainer.train_step.call(episodes())
    os.kill(pids_of("trainer")[1], signal.SIGKILL)
    await raised(ActorDied, step)
    status = await one.get_status.call_one()
    assert (status.step, status.version, status.resumed_from) == (2, 4, str(HERE / "run" / "step-000002")), status
    assert await one.get_extra.call_one() == {"row": 7}
    fetched = await asyncio.to_thread(store("policy").fetch, 4, 30.0)
    assert any(not torch.equal(tensor, lost[name]) for name, tensor in fetched.tensors.items())
    result = (await trainer.train_step.call(episodes())).get(0)
    assert result.step == 3
    assert_equal(await published(trainer, "policy"), lost)  # the step that was lost, made again
    assert (await one.get_status.call_one()).version == 5
    error = await raised(ValueError, trainer.push_weights.call(5))
    assert "version 5 of the weights cannot be published: 5 already was" in str(error)


def raises_on_rank_1(batch: Batch, totals: Totals) -> torch.Tensor:
    """A loss of a user's own."""
    if dist.get_rank() == 1:
        raise ArithmeticError("this loss does not like rank 1")
    return -(batch.logprobs * batch.mask).sum() / totals.tokens


async def an_error_on_one_rank_is_raised(parallel: Any) -> None:
    trainer = await Trainer.options(procs=2).as_actor(TINY, "train:raises_on_rank_1", parallel=parallel)
    await trainer.train_step.call(episodes())


async def a_full_disk_ends_it(folder: str) -> None:
    trainer = await Trainer.options(procs=2).as_actor(TINY, checkpoint=folder, save_every=1)
    await trainer.train_step.call(episodes())
    while True:
        await trainer.train_step.call(episodes())


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
