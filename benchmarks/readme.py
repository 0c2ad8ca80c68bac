"""Puts the figures of a results file into the README, as they are: `python benchmarks/readme.py RESULTS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from report import quantity

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmark -->", "<!-- end of benchmark -->"


def rows(document: dict[str, Any]) -> list[str]:
    """A table of medians with their limits, and on what they were measured."""
    machine, versions = document["machine"], document["versions"]
    lines = ["| measured | median | at most |", "|---|---|---|"]
    for row in document["rows"]:
        verdict = {None: "", True: "", False: " **missed**"}[row["ok"]]
        limit = "" if row["limit"] is None else quantity(row["limit"], row["unit"])
        what = f"{row['section']}: {row['what']}".replace("|", "/")
        lines.append(f"| {what} | {quantity(row['median'], row['unit'])}{verdict} | {limit} |")
    memory = machine["memory_bytes"] / 2**30
    lines += [
        "",
        f"`make bench` on {machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, Linux {machine['kernel']}, "
        f"Python {versions['python']}, torch {versions['torch']}, {document['date'][:10]}; "
        f"medians of {document['options']['repeat']}, sides by turns, all samples in `benchmarks/results/`.",
    ]
    return lines


def main() -> None:
    """Replace what stands between the marks."""
    document = json.loads(Path(sys.argv[1]).read_text())
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text("\n".join([before + BEGIN, *rows(document), END]) + after)


if __name__ == "__main__":
    main()
