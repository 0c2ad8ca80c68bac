"""What people train with fits beside forgectl in one environment; the resolver says so without fetching a wheel."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_dependencies import PYTHONS

TOP = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
BESIDE = ("transformers accelerate datasets trl peft", "lightning wandb vllm")


def resolved(python: str, names: str, *ours: str | Path) -> dict[str, str]:
    """Name → the newest versions that fit together; raises CalledProcessError."""
    words = ["pip", "compile", "--quiet", "--python-version", python, "--only-binary", ":all:", "--no-annotate"]
    argv = [UV, *words, "--no-header", *ours, "-"]
    done = subprocess.run(argv, input=names.replace(" ", "\n"), capture_output=True, text=True, check=True, timeout=100)
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", done.stdout, flags=re.MULTILINE))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", BESIDE)
def test_what_people_train_with_keeps_its_newest_versions_beside_forgectl(names: str) -> None:
    if not UV.exists():
        pytest.skip("UV IS NOT INSTALLED: `pip install uv`")
    try:
        alone = resolved(PYTHONS[-1], names)
    except subprocess.CalledProcessError as e:
        pytest.skip(f"NO INDEX, OR THEY DO NOT FIT EACH OTHER: {e.stderr[-300:]}")
    assert len(alone) > 20
    together = resolved(PYTHONS[-1], names, "--extra", "rl", TOP / "pyproject.toml")
    assert {name: together.get(name) for name in alone} == alone
