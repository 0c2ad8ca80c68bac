"""Puts the figures of results files into the pages, as they are: `python benchmarks/pages.py`.

The tables of NAME.json go into a page between the marks `<!-- benchmark NAME -->` and `<!-- end of benchmark NAME -->`,
the few of README.md between those of `speed`. The charts of benchmarks/charts.py become files in docs/assets/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charts import CHARTS, svg
from report import bound, quantity

TOP = Path(__file__).parents[1]
RESULTS = TOP / "benchmarks" / "results"
PAGES = (TOP / "README.md", TOP / "docs" / "benchmarks.md", TOP / "docs" / "reliability.md")
ASSETS = TOP / "docs" / "assets"
BUSY = 3.0
"""The load average above which a page says that other work ran on the machine."""
Results = Mapping[str, Mapping[str, Any]]
"""Name of a results file → its document."""

SPEED = (
    ("start 8 ranks that import torch", "launch", "launch: 8 ranks: {}", ("torchrun", "forgectl")),
    ("start 16 actors", "messages", "start: 16 actors: {}", ("monarch", "forgectl")),
    ("call an actor", "messages", "call: 1 rank: {}", ("monarch", "forgectl")),
    (
        "send 64 MiB of numpy to an actor",
        "messages",
        "argument: 64 MiB of numpy as argument: {}",
        ("monarch", "forgectl"),
    ),
    ("restart 8 ranks", "launch", "restart: 8 ranks: {}", (None, "forgectl")),
    ("notice the death of a rank, in a call", "messages", "death: a waiting call: {}", ("monarch", "forgectl")),
)
"""(What, results, the row with a place for the side, the sides) of each line of README's table."""
NAMES = {"torchrun": "torchrun", "monarch": "Monarch", "forgectl": "forgectl"}


def results() -> dict[str, dict[str, Any]]:
    """All results, by the name of their file."""
    results = (path for path in sorted(RESULTS.glob("*.json")) if not path.stem.endswith("-curves"))
    return {path.stem: json.loads(path.read_text()) for path in results}


def rows(document: Mapping[str, Any]) -> list[str]:
    """A table of medians with their limits, and on what they were measured."""
    machine, versions = document["machine"], document["versions"]
    lines = ["| measured | median | limit |", "|---|---|---|"]
    for row in document["rows"]:
        verdict = {None: "", True: "", False: " **missed**"}[row["ok"]]
        limit = bound(row["limit"], row["unit"], least=row.get("least", False))
        what = f"{row['section']}: {row['what']}".replace("|", "/")
        lines.append(f"| {what} | {quantity(row['median'], row['unit'])}{verdict} | {limit} |")
    memory, options = machine["memory_bytes"] / 2**30, document["options"]
    how = options.get("how") or f"medians of {options['repeat']}, sides by turns"
    lines += [
        "",
        f"`make bench` on {machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, Linux {machine['kernel']}, "
        f"{_named(versions)}, {document['date'][:10]}; "
        f"{how}, all samples in `benchmarks/results/`"
        + (f"; the machine was busy (load {load:.0f})." if (load := machine.get("load_average", 0)) > BUSY else "."),
    ]
    return lines


def speed(found: Results) -> list[str]:
    """README's table: a line a question, with the other side where there is one."""
    lines = ["| to … | forgectl | |", "|---|---|---|"]
    for what, name, row, (other, ours) in SPEED:
        shown = _shown(found, name, row.format(ours))
        beside = f"{NAMES[other]}: {_shown(found, name, row.format(other))}" if other else ""
        lines.append(f"| {what} | **{shown}** | {beside} |")
    return lines


def median(found: Results, name: str, what: str) -> tuple[float, str]:
    """(Median, unit) of the row `section: what` of a results file; raises KeyError if it has none."""
    for row in found[name]["rows"]:
        if f"{row['section']}: {row['what']}" == what:
            return row["median"], row["unit"]
    raise KeyError(f"{name}.json has no row {what!r}")


def _shown(found: Results, name: str, what: str) -> str:
    value, unit = median(found, name, what)
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def _named(versions: Mapping[str, Any]) -> str:
    shown = {"python": "Python", "torch": "torch", "pyzmq": "pyzmq", "torchmonarch": "Monarch", "ray": "Ray"}
    return ", ".join(f"{name} {versions[key]}" for key, name in shown.items() if versions.get(key))


def filled_in(page: str, found: Results) -> str:
    """The text of a page with the tables of all its marks."""
    for name, lines in {"speed": speed(found), **{name: rows(document) for name, document in found.items()}}.items():
        begin, end = f"<!-- benchmark {name} -->", f"<!-- end of benchmark {name} -->"
        if begin in page:
            before, _, rest = page.partition(begin)
            page = "\n".join([before + begin, *lines, end]) + rest.partition(end)[2]
    return page


def charts(found: Results) -> dict[str, str]:
    """Name of a file in docs/assets/ → its SVG."""
    return {f"{chart.name}.svg": svg(chart, lambda name, what: median(found, name, what)[0]) for chart in CHARTS}


def main() -> None:
    """Write the pages and the charts."""
    found = results()
    for page in PAGES:
        page.write_text(filled_in(page.read_text(), found))
    for name, text in charts(found).items():
        (ASSETS / name).write_text(text)


if __name__ == "__main__":
    main()
