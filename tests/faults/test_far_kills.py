"""Kills on both sides of ssh at random moments: ssh itself, sshd's child, messengers, agents, ranks on two hosts."""

from __future__ import annotations

import random

import pytest

from tests.conftest import SOAK
from tests.faults.far_chaos import reaching
from tests.ssh.conftest import Far


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(SOAK))
def test_whoever_is_killed_on_either_side_the_run_is_whole_again(far: Far, chance: random.Random, number: int) -> None:
    del number
    reaching(far, chance)
