"""Measures the decode loop beside transformers' `generate`: `python benchmarks/generation.py …`.

Tokens per second at 1, 4, 16 and 64 requests of mixed lengths, with the same model; programs/generate_by_turns.py says
which lengths. `--n` are the numbers of requests. And how long new weights hold sampling up.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import models
from forge import Forge
from harness import Sections, run
from measure import Row
from models import measured

LEAST = {1: 0.95, 16: 2.0}
STALL = 1.2
OURS, THEIRS = "the decode loop", "transformers' generate"


def _rates(forge: Forge, model: Any, name: str, threads: int, repeat: int, counts: list[int]) -> Iterator[Row]:
    rates_by_count = measured(forge, "generate_by_turns.py", model, threads, repeat, *counts)
    for word, rates in rates_by_count.items():
        requests = f"{word} request{'s' * (word != '1')}"
        for side, values in rates.items():
            yield Row(name, f"{requests}: {side}", "tokens/s", tuple(values))
        ratios = tuple(ours / theirs for ours, theirs in zip(rates[OURS], rates[THEIRS], strict=True))
        yield Row(
            name, f"{requests}: {OURS} beside {THEIRS}", "×", ratios, LEAST.get(int(word)), "issue 13", least=True
        )


def tiny(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A decoder of 0.8 million weights, on one thread: for its small products two are slower."""
    yield from _rates(forge, models.TINY, "tiny", 1, 3 * options.repeat, options.n)


def smollm(forge: Forge, options: Namespace) -> Iterator[Row]:
    """SmolLM2-135M-Instruct, on all processors."""
    yield from _rates(forge, models.smollm(), "smollm", len(os.sched_getaffinity(0)), options.repeat, options.n)


def swap(forge: Forge, options: Namespace) -> Iterator[Row]:
    """New weights while it samples, with a decoder of 67 million weights."""
    seconds = measured(forge, "swap_weights.py", models.MIDDLE, 1, 3 * options.repeat)
    for what, values in seconds.items():
        yield Row("swap", f"268 MB of new weights: {what}", "s", tuple(values))
    ratios = tuple(stall / load for stall, load in zip(seconds["stall"], seconds["load"], strict=True))
    yield Row("swap", "268 MB of new weights: stall / load", "", ratios, STALL, "issue 13")


SECTIONS: Sections = {"tiny": tiny, "smollm": smollm, "swap": swap}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures generation on this machine", [1, 4, 16, 64]))
