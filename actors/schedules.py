"""Learning rates by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """How the learning rate rises, then stays or falls. Raises ValueError for values that do not fit together."""

    kind: Kind = "constant"
    """After the warm-up: the same rate, or a fall along a line, or along half a cosine."""
    warmup_steps: int = 0
    """Steps in which the rate rises evenly; the last of them has the full rate."""
    total_steps: int | None = None
    """Where the fall ends, counted from the beginning; linear and cosine need it."""
    min_ratio: float = 0.0
    """What the fall ends at, as a part of the full rate."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"the schedule's kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if self.warmup_steps < 0 or not 0 <= self.min_ratio <= 1:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be 0 or more, min_ratio ({self.min_ratio}) 0 to 1"
            )
        if self.kind != "constant" and (self.total_steps is None or self.total_steps <= self.warmup_steps):
            raise ValueError(
                f"a {self.kind} schedule needs total_steps above warmup_steps ({self.warmup_steps}), "
                f"not {self.total_steps}"
            )

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Schedule:
        """From its keys; raises ValueError for one that is unknown."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(keys.keys() - set(known)):
            raise ValueError(f"lr_scheduler has no {', '.join(unknown)}; its keys are {', '.join(known)}")
        return cls(**keys)

    def factor(self, step: int) -> float:
        """The part of the full rate for a step; the first step is 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant" or self.total_steps is None:
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        left = 1 - done if self.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.min_ratio + (1 - self.min_ratio) * left
