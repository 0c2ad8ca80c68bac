"""Puts the figures of results files into the pages, as they are: `python benchmarks/readme.py RESULTS.json…`.

Those of NAME.json go into README.md or docs/actors.md, between the marks `<!-- benchmark NAME -->` and
`<!-- end of benchmark NAME -->`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from report import bound, quantity

TOP = Path(__file__).parents[1]
PAGES = (TOP / "README.md", TOP / "docs" / "actors.md")
BUSY = 3.0
"""The load average above which a page says that other work ran on the machine."""


def rows(document: dict[str, Any]) -> list[str]:
    """A table of medians with their limits, and on what they were measured."""
    machine, versions = document["machine"], document["versions"]
    lines = ["| measured | median | limit |", "|---|---|---|"]
    for row in document["rows"]:
        verdict = {None: "", True: "", False: " **missed**"}[row["ok"]]
        limit = bound(row["limit"], row["unit"], least=row.get("least", False))
        what = f"{row['section']}: {row['what']}".replace("|", "/")
        lines.append(f"| {what} | {quantity(row['median'], row['unit'])}{verdict} | {limit} |")
    memory = machine["memory_bytes"] / 2**30
    lines += [
        "",
        f"`make bench` on {machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, Linux {machine['kernel']}, "
        f"{_named(versions)}, {document['date'][:10]}; "
        f"medians of {document['options']['repeat']}, sides by turns, all samples in `benchmarks/results/`"
        + (f"; the machine was busy (load {load:.0f})." if (load := machine.get("load_average", 0)) > BUSY else "."),
    ]
    return lines


def _named(versions: dict[str, Any]) -> str:
    shown = {"python": "Python", "torch": "torch", "pyzmq": "pyzmq", "torchmonarch": "Monarch", "ray": "Ray"}
    return ", ".join(f"{name} {versions[key]}" for key, name in shown.items() if versions.get(key))


def main() -> None:
    """Replace what stands between the marks."""
    for path in map(Path, sys.argv[1:]):
        begin, end = f"<!-- benchmark {path.stem} -->", f"<!-- end of benchmark {path.stem} -->"
        page = next((page for page in PAGES if begin in page.read_text()), None)
        if page is None:
            sys.exit(f"no page has the mark {begin}")
        before, _, rest = page.read_text().partition(begin)
        after = rest.partition(end)[2]
        page.write_text("\n".join([before + begin, *rows(json.loads(path.read_text())), end]) + after)


if __name__ == "__main__":
    main()
