"""Weights, rows and metrics between the real processes of a run."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play


@pytest.mark.parametrize("scene", ["weights_come_once_to_a_host", "rows_and_metrics"])
def test_scene(forge: Forge, scene: str) -> None:
    forge.env["OMP_NUM_THREADS"] = "1"
    result = play(forge, f"play_data.py {scene}")
    if scene == "rows_and_metrics":
        assert "rank" in result.stderr, "the table is on the script's terminal"
