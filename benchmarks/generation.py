"""Measures the decode loop beside transformers' `generate`: `python benchmarks/generation.py …`.

Tokens per second at 1, 4, 16 and 64 requests of mixed lengths, with the same model; programs/generate_by_turns.py says
which lengths. `--n` are the numbers of requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge import Forge
from harness import Sections, run
from measure import PROGRAMS, BenchmarkError, Row

TINY = {
    "characters": "0123456789+=.",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SMOLLM = Path("~/.cache/forgectl-models/smollm2-135m-instruct").expanduser()
LEAST = {1: 0.95, 16: 2.0}
OURS, THEIRS = "the decode loop", "transformers' generate"


def _rates(forge: Forge, model: Any, name: str, threads: int, repeat: int, counts: list[int]) -> Iterator[Row]:
    numbers = map(str, (threads, repeat, *counts))
    argv = [sys.executable, str(PROGRAMS / "generate_by_turns.py"), json.dumps(model), *numbers]
    done = subprocess.run(argv, env=forge.env, cwd=forge.folder(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{argv[1]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    for word, rates in json.loads(done.stdout.splitlines()[-1]).items():
        requests = f"{word} request{'s' * (word != '1')}"
        for side, values in rates.items():
            yield Row(name, f"{requests}: {side}", "tokens/s", tuple(values))
        ratios = tuple(ours / theirs for ours, theirs in zip(rates[OURS], rates[THEIRS], strict=True))
        yield Row(
            name, f"{requests}: {OURS} beside {THEIRS}", "×", ratios, LEAST.get(int(word)), "issue 13", least=True
        )


def tiny(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A decoder of 0.8 million weights, on one thread: for its small products two are slower."""
    yield from _rates(forge, TINY, "tiny", 1, 3 * options.repeat, options.n)


def smollm(forge: Forge, options: Namespace) -> Iterator[Row]:
    """SmolLM2-135M-Instruct, where sample_configs/smollm.py has written it, on all processors."""
    if not SMOLLM.exists():
        raise BenchmarkError(f"there is no {SMOLLM}: python sample_configs/smollm.py {SMOLLM}")
    yield from _rates(forge, str(SMOLLM), "smollm", len(os.sched_getaffinity(0)), options.repeat, options.n)


SECTIONS: Sections = {"tiny": tiny, "smollm": smollm}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures generation on this machine", [1, 4, 16, 64]))
