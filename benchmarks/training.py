"""Measures training steps of the Trainer beside a plain loop of one process: `python benchmarks/training.py …`.

The model and the batch are the same, and so are the losses: the program that measures compares them.
"""

from __future__ import annotations

import json
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
LEAST = 0.95
PLAIN, OURS = "a plain loop", "Trainer of 1 rank(s)"


def _steps(forge: Forge, model: Any, name: str, repeat: int, ranks: list[int]) -> Iterator[Row]:
    argv = [sys.executable, str(PROGRAMS / "train_by_turns.py"), json.dumps(model), str(repeat), *map(str, ranks)]
    done = subprocess.run(argv, env=forge.env, cwd=forge.folder(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{argv[1]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    for side, values in seconds.items():
        yield Row(name, f"a step of {side}", "s", tuple(values))
    ratios = tuple(plain / ours for plain, ours in zip(seconds[PLAIN], seconds[OURS], strict=True))
    yield Row(name, f"speed of {OURS} beside {PLAIN}", "×", ratios, LEAST, "issue 13", least=True)


def tiny(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A decoder of 0.8 million weights."""
    yield from _steps(forge, TINY, "tiny", 10 * options.repeat, [1, *(n for n in options.n if n > 1)])


def smollm(forge: Forge, options: Namespace) -> Iterator[Row]:
    """SmolLM2-135M-Instruct, where sample_configs/smollm.py has written it; on one rank, since each takes 3 GB."""
    if not SMOLLM.exists():
        raise BenchmarkError(f"there is no {SMOLLM}: python sample_configs/smollm.py {SMOLLM}")
    yield from _steps(forge, str(SMOLLM), "smollm", options.repeat, [1])


SECTIONS: Sections = {"tiny": tiny, "smollm": smollm}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures training steps on this machine", [1, 2]))
