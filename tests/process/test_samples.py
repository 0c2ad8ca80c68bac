"""The samples and the first spec that `forgectl init` writes run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Forge

SAMPLES = Path(__file__).parents[2] / "sample_configs"


def test_hello(forge: Forge) -> None:
    result = forge.run("launch", SAMPLES / "hello.yaml")
    assert result.returncode == 0, result.stderr
    assert "rank 1 of 2: the sum is 3" in result.stdout


@pytest.mark.timeout(300)
def test_text_learns(forge: Forge) -> None:
    """A few steps are enough to see the loss fall and a sample come from the checkpoint."""
    out = forge.folder / "checkpoints"
    program = f"{SAMPLES / 'text.py'} --steps 20 --context 32 --width 32 --layers 1 --out {out}"
    spec = forge.spec(f"scripts: {{text: {{run: {program}, procs: 2, preload: [torch, torch._dynamo]}}}}")
    result = forge.run("launch", spec, timeout=240)
    assert result.returncode == 0, result.stderr
    losses = [float(line.split("train ")[1].split()[0]) for line in result.stdout.splitlines() if "train " in line]
    assert len(losses) >= 2, result.stdout
    assert losses[-1] < losses[0]
    assert list(out.iterdir())


def test_init_gives_a_spec_that_runs(forge: Forge) -> None:
    forge.ok("init", "first")
    result = forge.run("launch", "first/forge.yaml")
    assert result.returncode == 0, result.stderr
    assert "step 50: loss" in result.stdout
