"""The models that are measured, and programs that measure them in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from forge import Forge
from measure import PROGRAMS, BenchmarkError

TINY = {
    "characters": "0123456789+=.",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
"""A decoder of 0.8 million weights."""
MIDDLE = TINY | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16}
"""A decoder of 67 million weights."""


def smollm() -> str:
    """The folder of SmolLM2-135M-Instruct, where sample_configs/smollm.py has written it; raises BenchmarkError."""
    folder = Path("~/.cache/forgectl-models/smollm2-135m-instruct").expanduser()
    if not folder.exists():
        raise BenchmarkError(f"there is no {folder}: python sample_configs/smollm.py {folder}")
    return str(folder)


def measured(forge: Forge, program: str, model: Any, *numbers: int) -> dict[str, Any]:
    """What a program prints of a model as its last line, JSON; raises BenchmarkError where it fails."""
    argv = [sys.executable, str(PROGRAMS / program), json.dumps(model), *map(str, numbers)]
    done = subprocess.run(argv, env=forge.env, cwd=forge.folder(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{argv[1]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
