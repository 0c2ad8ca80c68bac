"""Learning rates by step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors.schedules import Schedule


def test_the_warm_up_rises_evenly_to_the_full_rate() -> None:
    assert [Schedule(warmup_steps=4).factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert Schedule().factor(0) == 1


def test_the_rate_falls_along_a_line_or_a_cosine_and_stays_at_the_end() -> None:
    line = Schedule("linear", warmup_steps=2, total_steps=6, min_ratio=0.2)
    assert [round(line.factor(step), 9) for step in range(2, 9)] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    cosine = Schedule("cosine", total_steps=4)
    assert [cosine.factor(step) for step in range(5)] == pytest.approx(
        [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2, 0]
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "cosin"}, "'cosin'; it must be one of constant, linear, cosine"),
        ({"kind": "linear"}, "needs total_steps above warmup_steps"),
        ({"kind": "cosine", "warmup_steps": 5, "total_steps": 5}, r"above warmup_steps \(5\), not 5"),
        ({"min_ratio": 2}, "min_ratio"),
        ({"warmup": 3}, "has no warmup; its keys are kind, warmup_steps"),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.of(keys)
