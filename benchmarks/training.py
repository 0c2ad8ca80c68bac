"""Measures training steps of the Trainer beside a plain loop of one process: `python benchmarks/training.py …`.

The model and the batch are the same, and so are the losses: the program that measures compares them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import models
from forge import Forge
from harness import Sections, run
from measure import Row
from models import measured

LEAST = 0.95
PLAIN, OURS = "a plain loop", "Trainer of 1 rank(s)"


def _steps(forge: Forge, model: Any, name: str, repeat: int, ranks: list[int]) -> Iterator[Row]:
    seconds = measured(forge, "train_by_turns.py", model, repeat, *ranks)
    for side, values in seconds.items():
        yield Row(name, f"a step of {side}", "s", tuple(values))
    ratios = tuple(plain / ours for plain, ours in zip(seconds[PLAIN], seconds[OURS], strict=True))
    yield Row(name, f"speed of {OURS} beside {PLAIN}", "×", ratios, LEAST, "issue 13", least=True)


def tiny(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A decoder of 0.8 million weights."""
    yield from _steps(forge, models.TINY, "tiny", 10 * options.repeat, [1, *(n for n in options.n if n > 1)])


def smollm(forge: Forge, options: Namespace) -> Iterator[Row]:
    """SmolLM2-135M-Instruct, on one rank, since each takes 3 GB."""
    yield from _steps(forge, models.smollm(), "smollm", options.repeat, [1])


SECTIONS: Sections = {"tiny": tiny, "smollm": smollm}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures training steps on this machine", [1, 2]))
