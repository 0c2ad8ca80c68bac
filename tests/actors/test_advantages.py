"""Advantages against the formulas in plain Python."""

from __future__ import annotations

import asyncio
import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.advantages import ComputeAdvantages, Mode, advantages, zero_variance

GROUPS = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=n, max_size=n), min_size=1)
)


def reference(rewards: list[list[float]], mode: Mode) -> list[list[float]]:
    spread = statistics.stdev(r for group in rewards for r in group)
    found = []
    for group in rewards:
        mean = statistics.fmean(group)
        if mode == "rloo":
            found.append([r - (sum(group) - r) / (len(group) - 1) for r in group])
        else:
            scale = {"group": statistics.stdev(group) + 1e-4, "batch": spread + 1e-4, "mean_only": 1.0}[mode]
            found.append([(r - mean) / scale for r in group])
    return found


@settings(deadline=None)
@given(GROUPS, st.sampled_from(["group", "mean_only", "batch", "rloo"]))
def test_advantages_are_those_of_the_formulas(rewards: list[list[float]], mode: Mode) -> None:
    found = advantages(torch.tensor(rewards, dtype=torch.float64), mode)
    assert found.tolist() == [pytest.approx(row, abs=1e-7) for row in reference(rewards, mode)]
    torch.testing.assert_close(advantages(rewards, mode).double(), found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["group", "mean_only", "batch", "rloo"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.3, -7.7])
def test_equal_rewards_have_advantages_of_exactly_zero(mode: Mode, reward: float) -> None:
    found = advantages([[reward] * 7, [reward, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], mode)
    assert (found[0] == 0).all() and found[1].any()
    assert zero_variance([[reward] * 7, [reward, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([[1.0, 2.0], [None, 1.0]], "completion 0 of group 1 is None"),
        ([[1.0, math.nan]], "completion 1 of group 0 is nan"),
        (torch.tensor([[1.0, 0.0], [0.0, math.inf]]), "completion 1 of group 1 is inf"),
        ([[1.0, 2.0], [1.0]], "group 1 has 1 rewards, but group 0 has 2"),
        ([[1.0], [2.0]], r"shape \[2, 1\] have nothing to compare"),
        ([], r"shape \[0, 0\] have nothing to compare"),
    ],
)
def test_rewards_that_cannot_be_compared_are_refused(rewards: Any, words: str) -> None:
    for refuse in (advantages, zero_variance):
        with pytest.raises(ValueError, match=words):
            refuse(rewards)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="no advantages of mode 'grup'; choose one of group, mean_only, batch, rloo"):
        advantages([[1.0, 2.0]], "grup")  # type: ignore[arg-type]


def test_integers_and_lists_become_float32() -> None:
    assert advantages([[1, 0]], "mean_only").dtype == advantages(torch.tensor([[1, 0]])).dtype == torch.float32


def test_the_actor_computes_the_same() -> None:
    rewards = [[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]]
    actor = ComputeAdvantages()
    found: Any = actor.compute(rewards, mode="rloo")
    torch.testing.assert_close(asyncio.run(found) if asyncio.iscoroutine(found) else found, advantages(rewards, "rloo"))
