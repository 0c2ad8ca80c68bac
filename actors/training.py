"""The training of one model: gradients of micro-batches, optimizer steps, what a checkpoint holds. It needs no mesh."""

from __future__ import annotations

import contextlib
import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from actors import losses, parallel
from actors.batches import (
    Sequences,
    Shares,
    check_episodes,
    demonstration,
    padded,
    response_logprobs,
    shares_of,
    shares_of_some,
    split_by_tokens,
)
from actors.losses import Loss, Metric
from actors.schedules import Schedule
from actors.types import Episode, StepResult
from actors.world import World

NO_GRADIENT = demonstration(torch.tensor([0]), torch.tensor([0]), loss_mask=torch.tensor([False]))


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained."""

    loss: Any = "grpo"
    """What `losses.make_loss` takes: a name, a mapping with `kind` and options, or a function."""
    optimizer: Mapping[str, Any] | None = None
    """`kind`, an optimizer of torch.optim in any case, and its arguments. Default: AdamW, lr 1e-5, no weight decay."""
    lr_scheduler: Mapping[str, Any] | None = None
    """The fields of a Schedule."""
    max_norm: float | None = 1.0
    """The most that the norm of all gradients may be; None: no limit."""
    micro_batch_tokens: int | None = None
    """The most tokens, padding included, of one forward and backward pass; None: all of a rank's episodes in one."""
    temperature: float = 1.0
    """That of the sampler, at which log-probabilities are computed."""
    seed: int = 0
    """Of dropout and the like: random numbers depend on seed, step and rank."""


class Training:
    """A model, its optimizer, its learning rate and its loss. Every rank of a world makes the same calls."""

    def __init__(
        self,
        module: nn.Module,
        options: TrainingOptions | None = None,
        *,
        world: World | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        """`module` is sharded already, or a whole copy. `compute` is the dtype of its arithmetic; None: its weights'.

        Raises ValueError for an unknown loss, optimizer or schedule.
        """
        self.options = options or TrainingOptions()
        self.module, self.world = module, world or World()
        self.step = 0
        """Optimizer steps that are done."""
        self.version = 0
        """Of the weights as they were last published; ages of episodes are relative to it."""
        first = next(module.parameters())
        self.device, self._compute = first.device, compute or first.dtype
        self._loss = losses.make_loss(self.options.loss)
        self._optimizer = make_optimizer(module, self.options.optimizer)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._schedule = Schedule.of(self.options.lr_scheduler or {})
        module.train()
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "use_cache"):
            config.use_cache = False  # transformers would keep keys and values for a generation

    # ------------------------------------------------------------ steps

    def train_step(
        self, data: Shares | Sequence[Episode], loss: Any = None, learning_rate: float | None = None
    ) -> StepResult:
        """Gradients of the data and one optimizer step. The arguments are as of the two methods below."""
        value, metrics = self.forward_backward(data, loss)
        metrics |= self.optim_step(learning_rate)
        return StepResult(self.step, value, metrics)

    def forward_backward(self, data: Shares | Sequence[Episode], loss: Any = None) -> tuple[float, dict[str, float]]:
        """Add the gradients of the loss to those that are there; the loss and its metrics, over all ranks.

        Responses without an effect on the gradients, as those of a group of equal rewards, are counted but not
        computed, unless there are no others. Metrics by token, as the entropy, are of those that are computed.

        data: the whole step's episodes, the same on all ranks: by rank, or as one list, which is dealt out by length.
        loss: another loss than the trainer's, as `make_loss` takes it. Raises ValueError where there are no episodes.
        """
        shares = shares_of(data, self.world.size)
        everything = [episode for share in shares for episode in share]
        if not everything:
            raise ValueError("there are no episodes to train on")
        chosen = self._loss if loss is None else losses.make_loss(loss)
        check_episodes(everything)  # on all ranks, so that none waits for one that refuses its share
        tensors = _Tensors.of(everything)
        valid = chosen.valid(tensors.mask, tensors.old_logprobs, tensors.truncated)
        totals = losses.Totals.of(valid)
        teaches = chosen.teaches(valid, tensors.advantages)
        if teaches.any() and not teaches.all():
            shares = shares_of_some(shares, teaches.tolist())
        value = torch.zeros((), dtype=torch.float64)
        found: dict[str, Metric] = {}
        for part in self._micro_batches(shares):
            output = self._backward(part, chosen, totals)
            value += output.loss.detach().double().cpu()
            found = losses.merge([found, output.metrics])
        of_ranks = self.world.gather((float(value), {name: metric.numbers() for name, metric in found.items()}))
        of_all = losses.merge({n: Metric.of_numbers(*m) for n, m in metrics.items()} for _, metrics in of_ranks)
        metrics = losses.results(of_all)
        rewards, ages = [episode.reward for episode in everything], self.version - tensors.versions
        metrics |= {
            "tokens": float(totals.tokens),
            "sequences": float(totals.sequences),
            "truncated": float(tensors.truncated.sum()),
            "nonfinite_tokens": float((tensors.mask & ~tensors.old_logprobs.isfinite()).sum()),
            "policy_age_mean": float(ages.double().mean()),
            "policy_age_max": float(ages.max()),
            "reward": sum(rewards) / len(rewards),
            "zero_variance_groups": float(zero_variance_groups(everything)),
        }
        return sum(value for value, _ in of_ranks), metrics

    def optim_step(self, learning_rate: float | None = None) -> dict[str, float]:
        """Clip the gradients, change the weights by them and clear them; the norm before clipping, and the rate.

        learning_rate: in place of the optimizer's and the schedule's. Raises FloatingPointError, and leaves the weights
        as they are, if the norm is not finite.
        """
        parameters = list(self.module.parameters())
        if self.world.size > 1 and not parallel.is_sharded(self.module):
            parallel.add_up_gradients(parameters, self.world)
        norm = parallel.clip_gradients(parameters, self.options.max_norm)
        factor = self._schedule.factor(self.step)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor if learning_rate is None else learning_rate
        self._optimizer.step()
        self.clear_gradients()
        self.step += 1
        return {"grad_norm": norm, "learning_rate": self._optimizer.param_groups[0]["lr"]}

    def clear_gradients(self) -> None:
        """Forget the gradients since the last optimizer step."""
        self._optimizer.zero_grad(set_to_none=True)

    # ------------------------------------------------------------ micro-batches

    def _micro_batches(self, shares: Sequence[Sequence[Episode]]) -> Iterator[list[Episode]]:
        """This rank's. A sharded model's ranks need equally many: without data they take part with an empty one."""
        splits = []
        for share in shares:
            lengths = [e.prompt_ids.shape[0] + e.token_ids.shape[0] for e in share]
            splits.append(split_by_tokens(lengths, self.options.micro_batch_tokens))
        for part in splits[self.world.rank]:
            yield [shares[self.world.rank][i] for i in part]
        if parallel.is_sharded(self.module):
            for _ in range(max(map(len, splits)) - len(splits[self.world.rank])):
                yield [NO_GRADIENT]

    def _backward(self, episodes: Sequence[Episode], loss: Loss, totals: losses.Totals) -> losses.LossOutput:
        sequences = Sequences.of(episodes).to(self.device)
        with self._arithmetic():
            logprobs, entropies = response_logprobs(
                self.module, sequences, self.options.temperature, with_entropy=loss.sampled
            )
        if episodes[0] is NO_GRADIENT:
            (logprobs.sum() * 0).backward()
            return losses.LossOutput(torch.zeros(()), {})
        batch = _Tensors.of(episodes).batch(logprobs, entropies, self.version)
        output = loss(batch, totals)
        output.loss.backward()
        return output

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Random numbers of this step, and mixed precision where the weights are more precise than it."""
        devices = [] if self.device.type == "cpu" else [self.device.index or 0]
        mixed = self._compute != next(self.module.parameters()).dtype and not parallel.is_sharded(self.module)
        with torch.random.fork_rng(devices), torch.autocast(self.device.type, self._compute, enabled=mixed):
            torch.manual_seed(hash((self.options.seed, self.step, self.world.rank)))
            yield

    # ------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """Weights and the optimizer's state by parameter name, for `torch.distributed.checkpoint`; any sharding."""
        model, optimizer = get_state_dict(self.module, self._optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state(self, state: Mapping[str, Any], step: int) -> None:
        """Go on after `step` with a state that was loaded into what `state()` returned."""
        set_state_dict(
            self.module, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        self.clear_gradients()
        self.step = step

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole value of each weight in the dtype of the arithmetic. All ranks must iterate."""
        for name, tensor in parallel.whole_tensors(self.module):
            yield name, tensor.to(self._compute) if tensor.is_floating_point() else tensor


@dataclass(frozen=True, eq=False)
class _Tensors:
    """What losses need of episodes, as tensors; B episodes of at most R response tokens."""

    mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    truncated: Tensor
    versions: Tensor

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> _Tensors:
        """Raises ValueError for episodes of which some have reference log-probabilities and some have not."""
        width = max(e.token_ids.shape[0] for e in episodes)
        references = [e.ref_logprobs for e in episodes if e.ref_logprobs is not None]
        if 0 < len(references) < len(episodes):
            raise ValueError(f"{len(references)} of {len(episodes)} episodes have ref_logprobs; give all or none")
        return cls(
            padded([e.loss_mask.bool() for e in episodes], width),
            padded([e.logprobs for e in episodes], width),
            padded(references, width) if references else None,
            torch.tensor([e.advantage for e in episodes], dtype=torch.float64),
            torch.tensor([e.truncated for e in episodes]),
            torch.tensor([e.policy_version for e in episodes]),
        )

    def batch(self, logprobs: Tensor, entropies: Tensor | None, version: int) -> losses.Batch:
        """With the policy's log-probabilities [B, R] and entropies [B, R]; on their device."""

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(logprobs.device, logprobs.dtype if tensor.is_floating_point() else None)

        return losses.Batch(
            logprobs=logprobs,
            old_logprobs=there(self.old_logprobs),
            ref_logprobs=None if self.ref_logprobs is None else there(self.ref_logprobs),
            advantages=there(self.advantages),
            mask=there(self.mask),
            entropy=entropies,
            truncated=there(self.truncated),
            policy_age=there(version - self.versions),
        )


def make_optimizer(module: nn.Module, keys: Mapping[str, Any] | None) -> torch.optim.Optimizer:
    """An optimizer of torch.optim by its `kind`, in any case, with its arguments: `{"kind": "sgd", "lr": 0.1}`.

    Raises ValueError for an unknown kind, TypeError for an argument that it does not have.
    """
    arguments = {"kind": "adamw", **(keys or {})}
    known = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    kind = str(arguments.pop("kind")).lower()
    if kind not in known:
        near = difflib.get_close_matches(kind, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
        raise ValueError(f"torch.optim has no {kind!r}; {hint}")
    if kind == "adamw":
        arguments = {"lr": 1e-5, "weight_decay": 0.0, "fused": True, **arguments}
    optimizer: torch.optim.Optimizer = known[kind](module.parameters(), **arguments)
    return optimizer


def zero_variance_groups(episodes: Sequence[Episode]) -> int:
    """How many groups of two or more have equal rewards: there is nothing to learn from them."""
    groups: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        groups[episode.group_id].append(episode.reward)
    return sum(len(rewards) > 1 and len(set(rewards)) == 1 for rewards in groups.values())
