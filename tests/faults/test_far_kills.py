"""Kills on both sides of ssh at random moments: ssh itself, sshd's child, messengers, agents, ranks on two hosts."""

from __future__ import annotations

import os
import random

import pytest

from tests.conftest import SOAK
from tests.faults.far_chaos import reaching
from tests.ssh.conftest import Far, far  # noqa: F401  (a fixture)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(SOAK))
def test_whoever_is_killed_on_either_side_the_run_is_whole_again(far: Far, number: int) -> None:  # noqa: F811
    seed = os.environ.get("FORGECTL_CHAOS_SEED") or f"{random.SystemRandom().randrange(10**9)}.{number}"
    print(f"FORGECTL_CHAOS_SEED={seed}")
    reaching(far, random.Random(seed))
