"""The results: a table for people, a JSON document for what comes after."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Row
from rich.console import Console
from rich.table import Table

PACKAGES = ("forgectl", "torch", "pyzmq", "torchmonarch", "ray", "click", "rich", "pydantic", "psutil")


def table(rows: Sequence[Row]) -> Table:
    """A line a row: value, spread, limit and whether it was kept."""
    drawn = Table("section", "what", title_justify="left")
    for name in ("median", "min to max", "limit"):
        drawn.add_column(name, justify="right")
    drawn.add_column("")
    drawn.add_column("limit from")
    for i, row in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1].section != row.section
        drawn.add_row(*cells(row), end_section=last)
    return drawn


def cells(row: Row) -> tuple[str, ...]:
    """The table's line of a row."""
    value, limit = quantity(row.value, row.unit), bound(row.limit, row.unit, least=row.least)
    spread = "" if len(row.samples) == 1 else f"{number(min(row.samples))} to {number(max(row.samples))}"
    verdict = {None: "", True: "[green]ok[/]", False: "[bold red]missed[/]"}[row.ok]
    return row.section, row.what, value, spread, limit, verdict, row.because


def quantity(value: float, unit: str) -> str:
    """Such as `0.312 s`."""
    return f"{number(value)} {unit}".strip()


def bound(limit: float | None, unit: str, *, least: bool) -> str:
    """Such as `≤ 0.5 s`; nothing where there is no limit."""
    return "" if limit is None else f"{'≥' if least else '≤'} {quantity(limit, unit)}"


def number(value: float) -> str:
    """Three significant digits or so, never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3f}"


def document(rows: Sequence[Row], failed: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """All samples, and what is needed to compare them with those of another day or machine."""
    return {
        "schema_version": 1,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "options": dict(options),
        "rows": [
            {
                "section": r.section,
                "what": r.what,
                "unit": r.unit,
                "median": r.value,
                "limit": r.limit,
                "least": r.least,
                "limit_from": r.because,
                "ok": r.ok,
                "samples": list(r.samples),
            }
            for r in rows
        ],
        "failed": dict(failed),
    }


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier document, each replaced by the new one of its name, and behind them the other new ones."""
    by_name = {(row["section"], row["what"]): row for row in (*old, *new)}  # a name keeps its first place
    return list(by_name.values())


def machine() -> dict[str, Any]:
    """The processor, its cores that we may use, memory, kernel, and how busy it is."""
    models = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
    }


def version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def show(console: Console, rows: Sequence[Row], failed: Mapping[str, str]) -> None:
    """Print the table, then what failed."""
    if rows:
        console.print(table(rows))
    for section, why in failed.items():
        console.print(f"[bold red]{section} failed:[/] ", end="")
        console.print(why, markup=False, highlight=False)
