"""Kills of anything of a run at random moments: the scenes of chaos.py, a few of each. `make chaos` plays hundreds."""

from __future__ import annotations

import random

import pytest

from tests.conftest import SOAK, Forge
from tests.faults.chaos import SCENES

EACH = 2 * SOAK


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(EACH))
@pytest.mark.parametrize("scene", SCENES)
def test_whatever_is_killed_nothing_is_left_and_the_cause_is_right(
    forge: Forge, chance: random.Random, scene: str, number: int
) -> None:
    del number
    SCENES[scene](forge, chance)
