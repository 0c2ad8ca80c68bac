"""The page on reliability promises nothing that no test holds, and has a row for each fault that there must be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs/reliability.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("`test_") > 0]
FAULTS = (
    "exits, raises or is killed", "out of memory", "hangs", "ignores SIGTERM", "leaves processes behind",
    "cannot be killed", "fork server", "an agent", "the controller dies", "messenger", "during a launch", "Ctrl-C",
    "the driver", "the connection", "a host is lost", "reboots", "a pid", "launching machine", "clocks", "one GPU",
    "dies slowly", "ports", "disk", "floods", "state file", "spec", "escape sequences", "garbage", "another version",
)  # fmt: skip
"""A word of each."""


@pytest.mark.parametrize("row", ROWS)
def test_each_row_names_tests_that_there_are(row: str) -> None:
    _, fault, _, tests, _ = row.split("|")
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", tests)
    assert named, f"no test holds: {fault.strip()}"
    for file, test in named:
        found = [path.read_text() for path in (TOP / "tests").rglob(file)]
        assert found, f"there is no {file}"
        assert not test or any(f"\ndef {test}(" in text for text in found), f"{file} has no {test}"


def test_each_fault_has_a_row_and_each_row_a_test() -> None:
    table = PAGE.partition("| held by |")[2].partition("\n\n")[0]
    assert len(table.splitlines()) - 2 == len(ROWS)
    faults = [row.split("|")[1] for row in ROWS]
    assert not [fault for fault in FAULTS if not any(fault in row for row in faults)]
