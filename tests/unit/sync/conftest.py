"""What most tests of syncing begin with: an empty workdir, and a host that has nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sync.sync_cases import Host


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "workdir").mkdir()
    return tmp_path / "workdir"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "root")
