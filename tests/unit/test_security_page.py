"""The pages on security claim nothing that no test holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs/security.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "| held by |" not in line]


@pytest.mark.parametrize("row", ROWS)
def test_each_claim_names_tests_that_there_are(row: str) -> None:
    _, claim, tests, _ = row.split("|")
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", tests)
    assert named, f"no test holds: {claim.strip()}"
    for file, test in named:
        [path] = (TOP / "tests").rglob(file)
        assert not test or f"\ndef {test}(" in path.read_text(), f"{file} has no {test}"


def test_who_is_kept_out_is_a_page_of_claims_and_not_of_words() -> None:
    """All that is outside the tables and the list of what is not defended are headings and the first lines."""
    claims, _, undefended = PAGE.partition("## What is not defended")
    text = [line for line in claims.splitlines() if line and not line.startswith(("|", "#"))]
    assert len(ROWS) >= 16 and len(text) <= 3, text
    assert undefended


def test_reports_are_told_where_to_go_and_what_counts() -> None:
    said = (TOP / "SECURITY.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", said):
        assert (TOP / link).exists()
    assert "docs/security.md" in said
