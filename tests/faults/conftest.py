"""Fixtures: chance, whose seed is printed where a test fails."""

from __future__ import annotations

import os
import random

import pytest

from tests.ssh.conftest import far  # noqa: F401  (a fixture)


@pytest.fixture
def chance() -> random.Random:
    """Random choices of one test; FORGECTL_CHAOS_SEED, as it printed the seed, repeats them."""
    seed = os.environ.get("FORGECTL_CHAOS_SEED") or str(random.SystemRandom().randrange(10**9))
    print(f"FORGECTL_CHAOS_SEED={seed}")
    return random.Random(seed)
