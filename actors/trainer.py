"""The actor that trains: ranks of one model, its checkpoints, and the weights that it publishes for generators."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from actors import parallel as parallelism
from actors.background import BackgroundWriter
from actors.batches import Shares
from actors.checkpoint import Checkpoints, checkpoints_around
from actors.models import LoadedModel, Model, load_model, save_model
from actors.training import Training, TrainingOptions
from actors.types import Episode, StaleBatch, StepResult
from actors.weights import WeightStore
from actors.world import World
from forgectl import ActorDied, ForgeActor, endpoint

P = ParamSpec("P")
R = TypeVar("R")
NEWS_OF_A_DEATH = 5.0
"""Seconds from a broken connection to another rank until its death must have been reported."""


def _by_all_ranks(method: Callable[Concatenate[Trainer, P], R]) -> Callable[Concatenate[Trainer, P], R]:
    """For endpoints with collectives: where another rank dies, raise ActorDied and not what its connections raise."""

    @functools.wraps(method)
    def run(self: Trainer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except RuntimeError as e:
            if not isinstance(e, dist.DistError) and "gloo" not in str(e):
                raise
            with contextlib.suppress(concurrent.futures.TimeoutError):
                raise self._death.result(NEWS_OF_A_DEATH) from e
            raise

    return run


@dataclass(frozen=True)
class TrainerStatus:
    """Where a trainer stands."""

    step: int
    """Optimizer steps that are done."""
    version: int
    """Of the weights that were published last; 0: none were."""
    saved_step: int | None
    """Of the last checkpoint that these ranks have completed."""
    resumed_from: str | None
    """The checkpoint that these ranks began with."""


class Trainer(ForgeActor):
    """Trains a causal language model by a loss of `actors.losses`, on any number of ranks.

    Call its endpoints on all ranks (`await trainer.train_step.call(…)`), since these exchange gradients and weights.
    With `checkpoint`, its ranks begin at the newest checkpoint in that folder, also after a restart of the mesh. They
    then publish their weights under a new, higher version. A write in the background that fails (a full disk) makes
    the next call raise.
    """

    preload = ("torch", "torch._dynamo")  # every optimizer imports the latter, which takes seconds

    def __init__(
        self,
        model: Model,
        loss: Any = "grpo",
        optimizer: Mapping[str, Any] | None = None,
        lr_scheduler: Mapping[str, Any] | None = None,
        max_norm: float | None = 1.0,
        dtype: str = "auto",
        parallel: parallelism.Parallel = "fsdp",
        micro_batch_tokens: int | None = None,
        checkpoint: str | None = None,
        save_every: int = 0,
        keep: int = 2,
        weights: str | WeightStore | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Say what to train and how; `setup` loads it. Fields not named here: see TrainingOptions.

        model: as of `load_model`. dtype: of the arithmetic; "auto" is bfloat16 on an accelerator and float32 on a CPU.
        Weights and the optimizer's state stay in float32. parallel: "fsdp" divides them among the ranks, "ddp" gives
        each rank a copy; with one rank neither is needed. checkpoint: a folder that all ranks can reach. save_every:
        steps from one checkpoint to the next, which then has no `extra`; 0: only `save` writes one. keep: checkpoints
        that stay. weights: the store that `push_weights` publishes to, or its name.
        """
        super().__init__()
        if parallel not in ("fsdp", "ddp"):
            raise ValueError(f"parallel is {parallel!r}; it must be 'fsdp' or 'ddp'")
        if save_every and checkpoint is None:
            raise ValueError(f"save_every is {save_every}, but checkpoint, the folder to save to, is not given")
        self._model, self._dtype, self._parallel = model, dtype, parallel
        self._options = TrainingOptions(loss, optimizer, lr_scheduler, max_norm, micro_batch_tokens, temperature, seed)
        self._checkpoint, self._save_every, self._keep = checkpoint, save_every, keep
        self._store = WeightStore(weights) if isinstance(weights, str) else weights
        self._checkpoints: Checkpoints | None = None
        self._publisher: Publisher | None = None
        self._resumed_from: Path | None = None
        self._extra: Any = None
        self._death: Future[ActorDied] = Future()  # of another rank

    @endpoint
    @_by_all_ranks
    def setup(self) -> None:
        """Load the model, meet the other ranks, and resume from the newest checkpoint, if there is one."""
        world = self._world = World.join(self.rank, self.size)
        self._loaded, compute = _loaded(self._model, self._dtype)
        parallelism.check_same_weights(self._loaded.module, world, str(self._model))
        if world.size > 1 and self._parallel == "fsdp":
            parallelism.shard(self._loaded.module, world, compute)
        self._training = Training(self._loaded.module, self._options, world=world, compute=compute)
        if self._checkpoint is not None:
            self._checkpoints = Checkpoints(self._checkpoint, self._keep, world)
        if self._store is not None:
            self._publisher = Publisher(self._store, world, self._checkpoints)
        newest = self._checkpoints.newest() if self._checkpoints else None
        if newest is not None:
            self._load(newest)
        elif self._publisher is not None and self._publisher.highest() > 0:  # these ranks replace others
            self.push_weights()

    # ------------------------------------------------------------ train

    @endpoint
    @_by_all_ranks
    def train_step(
        self,
        data: Shares | Sequence[Episode],
        loss: Any = None,
        learning_rate: float | None = None,
        version: int | None = None,
    ) -> StepResult:
        """Compute gradients and make one optimizer step; the result is the same on all ranks.

        data: the step's episodes by rank, as a ReplayBuffer gives them, or as one list, which is dealt out by length.
        For supervised training make them by `demonstration` and give the loss "sft". loss and learning_rate: in place
        of the trainer's. version: of the weights that the data was sampled for, so that no episode is older than the
        buffer's bound; raises StaleBatch, and trains nothing, where the trainer has published another. Metrics: those
        of the loss, `grad_norm` before clipping, `learning_rate`, `tokens`, `sequences`, `reward`,
        `zero_variance_groups`.
        """
        self._check()
        if version not in (None, self._training.version):
            has = self._training.version
            raise StaleBatch(f"the batch is for version {version} of the weights, but the trainer has version {has}")
        result = self._training.train_step(data, loss, learning_rate)
        self._save_at_times()
        return result

    @endpoint
    @_by_all_ranks
    def forward_backward(self, data: Shares | Sequence[Episode], loss: Any = None) -> tuple[float, dict[str, float]]:
        """Add the gradients of some episodes to those of earlier calls; the loss and its metrics.

        Each call's loss is normalized by its own number of tokens or sequences.
        """
        self._check()
        return self._training.forward_backward(data, loss)

    @endpoint
    @_by_all_ranks
    def optim_step(self, learning_rate: float | None = None) -> dict[str, float]:
        """Change the weights by the gradients of all `forward_backward` since the last step; norm and rate."""
        metrics = self._training.optim_step(learning_rate)
        self._save_at_times()
        return metrics

    @endpoint
    def clear_gradients(self) -> None:
        """Forget the gradients since the last optimizer step."""
        self._training.clear_gradients()

    # ------------------------------------------------------------ publish

    @endpoint
    @_by_all_ranks
    def push_weights(self, version: int | None = None, wait: bool = False) -> int:
        """Copy the weights to memory of the CPU, and publish them in a thread while training goes on; their version.

        version: above all earlier ones; None: the next. wait: return once the version can be fetched. Raises ValueError
        for a version that was used.
        """
        if self._publisher is None:
            raise ValueError("this trainer has no store of weights; give it weights=NAME")
        self._check()
        self._training.version = self._publisher.publish(self._training, version)
        if wait:
            self._publisher.wait()
        return self._training.version

    @endpoint(concurrent=True)
    async def read_weights(self, name: str, version: int | None) -> AsyncIterator[tuple[int, int] | bytes]:
        """Stream a version to another host, for `WeightStore.receive`; once it is written. Only rank 0 is asked."""
        if self._publisher is None or self._publisher.store.name != name:
            raise ValueError(f"this trainer has no store of weights that is named {name!r}")
        if (writing := self._publisher.writing) is not None:
            await asyncio.wrap_future(writing)
        async for part in self._publisher.store.stream_file(version):
            yield part

    # ------------------------------------------------------------ save and load

    @endpoint
    @_by_all_ranks
    def save(self, extra: Any = None, wait: bool = False) -> str:
        """Begin to write a checkpoint, and return its folder; with `wait` once it is complete.

        extra: what is to be resumed with it: a dataset's position, a buffer's state, the configuration; see
        `get_extra`. Raises CheckpointError if an earlier one could not be written.
        """
        checkpoints = self._existing_checkpoints()
        path = self._save(extra)
        if wait:
            checkpoints.wait()
        return str(path)

    @endpoint
    @_by_all_ranks
    def load(self, path: str | None = None) -> int:
        """Go back to a checkpoint, by default the newest; its step. Publishes the weights under a new version."""
        checkpoints = self._existing_checkpoints()
        checkpoints.wait()
        found = checkpoints.newest() if path is None else Path(path)
        if found is None:
            raise ValueError(f"there is no checkpoint in {checkpoints.folder}")
        self._load(found)
        return self._training.step

    @endpoint
    @_by_all_ranks
    def export(self, folder: str) -> None:
        """Write the model as a folder of Hugging Face, with its tokenizer; see `save_model`."""
        if (taken := checkpoints_around(folder)) is not None:
            raise ValueError(f"{folder} lies in the checkpoints of {taken}; export to another folder")
        tensors = {name: tensor.cpu() for name, tensor in self._training.tensors() if self.rank == 0}
        module, tokenizer, config = self._loaded
        self._world.from_leader(lambda: save_model(module, tokenizer, config, folder, tensors=tensors))

    @endpoint(concurrent=True)
    async def get_status(self) -> TrainerStatus:
        """Where the trainer stands, also while a step goes on. Raises what failed in the background."""
        self._check()
        saved = self._checkpoints.written if self._checkpoints else None
        resumed = None if self._resumed_from is None else str(self._resumed_from)
        return TrainerStatus(self._training.step, self._training.version, saved, resumed)

    @endpoint(concurrent=True)
    async def get_extra(self) -> Any:
        """What `save` was given as `extra` for the checkpoint that was loaded; None without one."""
        return self._extra

    def __cleanup__(self, exc: BaseException | None) -> None:
        """Finish what is being written. Without all ranks no checkpoint can be."""
        if isinstance(exc, ActorDied):
            self._death.set_result(exc)
        elif self._checkpoints is not None:
            self._checkpoints.wait()
        if self._publisher is not None:
            self._publisher.wait()

    # ------------------------------------------------------------ in a rank

    def _check(self) -> None:
        """Raise what failed in the background."""
        if self._checkpoints is not None:
            self._checkpoints.check()
        if self._publisher is not None:
            self._publisher.check()

    def _existing_checkpoints(self) -> Checkpoints:
        if self._checkpoints is None:
            raise ValueError("this trainer has no folder for checkpoints; give it checkpoint=FOLDER")
        return self._checkpoints

    def _save_at_times(self) -> None:
        if self._save_every and self._training.step % self._save_every == 0:
            self._save(None)

    def _save(self, extra: Any) -> Path:
        training = self._training
        return self._existing_checkpoints().save(training.step, training.version, training.state(), extra)

    def _load(self, path: Path) -> None:
        state = self._training.state()
        manifest, self._extra = self._existing_checkpoints().load(path, state)
        self._training.load_state(state, manifest.step)
        self._training.version = manifest.version
        self._resumed_from = path
        self.logger.info("resumed from %s", path)
        if self._publisher is not None:
            self.push_weights()


class Publisher(BackgroundWriter):
    """Gives weights to a store in a thread, each time under a higher version."""

    def __init__(self, store: WeightStore, world: World, checkpoints: Checkpoints | None) -> None:
        """With checkpoints, versions that were used before them stay used."""
        super().__init__("publish")
        self.store, self._world, self._checkpoints = store, world, checkpoints
        self._copies: dict[str, Tensor] = {}

    def highest(self) -> int:
        """The highest version that was ever used; 0 at first. All ranks call it."""
        return self._world.from_leader(self._highest)

    def publish(self, training: Training, version: int | None) -> int:
        """Copy the weights and begin to write them; an earlier write is waited for. All ranks call it."""
        self.wait()
        chosen = self._world.from_leader(lambda: self._choose(max(self._highest(), training.version), version))
        for name, tensor in training.tensors():
            if self._world.rank == 0:
                self._copy(name, tensor)
        if self._world.rank == 0:
            self._begin(self.store.publish, chosen, self._copies)
        return chosen

    def _highest(self) -> int:
        kept = 0 if self._checkpoints is None else self._checkpoints.highest_version()
        return max(kept, self.store.latest() or 0)

    def _choose(self, highest: int, version: int | None) -> int:
        if version is not None and version <= highest:
            raise ValueError(f"version {version} of the weights cannot be published: {highest} already was")
        chosen = highest + 1 if version is None else version
        if self._checkpoints is not None:
            self._checkpoints.set_highest_version(chosen)
        return chosen

    def _copy(self, name: str, tensor: Tensor) -> None:
        if name not in self._copies:
            pinned = tensor.device.type != "cpu"
            self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self._copies[name].copy_(tensor)


def _loaded(model: Model, dtype: str) -> tuple[LoadedModel, torch.dtype]:
    """A model with weights that are precise enough to be trained, and the dtype of its arithmetic."""
    if dtype == "auto":
        dtype = "float32" if torch.accelerator.current_accelerator(check_available=True) is None else "bfloat16"
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype not in dtypes:
        raise ValueError(f"dtype is {dtype!r}; it must be 'auto' or one of {', '.join(dtypes)}")
    precise = torch.float64 if dtype == "float64" else torch.float32
    return load_model(model, dtype=precise), dtypes[dtype]
