"""Advantages: how much better each completion of a prompt was than one had to expect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from actors.types import Completion, Episode
from forgectl import ForgeActor, endpoint

Mode = Literal["group", "mean_only", "batch", "rloo"]
Rewards: TypeAlias = Tensor | Sequence[Sequence[float | None]]
EPSILON = 1e-4
"""Added to the standard deviation that rewards are divided by."""


def advantages(rewards: Rewards, mode: Mode = "group") -> Tensor:
    """Advantages [G, n] of rewards [G, n]: n completions of each of G prompts. float32, or the type of a tensor.

    group: (r - mean) / (std + 1e-4) with the mean and the unbiased standard deviation of the group (GRPO, arXiv
    2402.03300). mean_only: r - mean (Dr. GRPO, arXiv 2503.20783). batch: the mean of the group, and the standard
    deviation of all rewards (arXiv 2508.08221). rloo: r - the mean of the others in the group (arXiv 2402.14740).
    A group whose rewards are equal has advantages of exactly 0. Raises ValueError for a reward that is None or not
    finite, groups of unequal sizes or of one completion, and an unknown mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"there are no advantages of mode {mode!r}; choose one of {', '.join(get_args(Mode))}")
    values = _checked(rewards)
    shifted = values - values[:, :1]  # so that the mean of equal rewards is exact
    centered = shifted - shifted.mean(1, keepdim=True)
    if mode == "group":
        return centered / (centered.std(1, keepdim=True) + EPSILON)
    if mode == "batch":
        return centered / (values.std() + EPSILON)
    if mode == "rloo":
        return centered * (values.shape[1] / (values.shape[1] - 1))
    return centered


def group_episodes(
    completions: Sequence[Completion], rewards: Sequence[float], group_id: str, mode: Mode = "group", **fields: Any
) -> list[Episode]:
    """The completions of one prompt, with their rewards and advantages, as episodes GROUP_ID-0, GROUP_ID-1 and so on.

    The text of a completion is in its episode's metadata. `fields` are further fields of each. Raises as `advantages`,
    and ValueError for another number of rewards.
    """
    metadata = fields.pop("metadata", {})
    each = zip(completions, rewards, advantages([rewards], mode)[0].tolist(), strict=True)
    return [
        Episode.of(
            completion,
            episode_id=f"{group_id}-{i}",
            group_id=group_id,
            reward=reward,
            advantage=advantage,
            metadata={"text": completion.text} | metadata,
            **fields,
        )
        for i, (completion, reward, advantage) in enumerate(each)
    ]


def zero_variance(rewards: Rewards) -> Tensor:
    """Which groups [G] have equal rewards [G, n], so that nothing can be learnt from them. Raises as `advantages`."""
    values = _checked(rewards)
    return (values == values[:, :1]).all(1)


def _checked(rewards: Rewards) -> Tensor:
    """Rewards as a tensor [G, n] of finite floats, with G >= 1 and n >= 2."""
    rows = rewards.tolist() if isinstance(rewards, Tensor) else [list(row) for row in rewards]
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"group {i} has {len(row)} rewards, but group 0 has {len(rows[0])}: sizes must be equal")
        for j, reward in enumerate(row):
            if reward is None or not math.isfinite(reward):
                raise ValueError(
                    f"the reward of completion {j} of group {i} is {reward}; give every completion a finite reward, "
                    "or leave its group out"
                )
    if not rows or len(rows[0]) < 2:
        raise ValueError(
            f"rewards of shape [{len(rows)}, {len(rows[0]) if rows else 0}] have nothing to compare: at least one "
            "group of two completions is needed (SamplingParams.n)"
        )
    if isinstance(rewards, Tensor) and rewards.is_floating_point():
        return rewards
    return torch.tensor(rows, dtype=torch.float32)


class ComputeAdvantages(ForgeActor):
    """Advantages as an actor, for those who compute them apart from the driver."""

    @endpoint
    def compute(self, rewards: Rewards, mode: Mode = "group") -> Tensor:
        """Advantages [G, n] of rewards [G, n]. The modes and errors are those of `advantages`."""
        return advantages(rewards, mode)
