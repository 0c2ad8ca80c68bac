"""Bar charts of results, as SVG that reads well on light and dark pages and needs no font of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from report import number

WIDTH, LEFT, RIGHT = 760, 150, 90
"""Pixels: of all, of the labels, and of the numbers."""
BAR, GAP = 18, 14
STYLE = """\
.card{fill:#fff;stroke:#d8dee4}.text{fill:#1f2328}.soft{fill:#59636e}.c0{fill:#3f51b5}.c1{fill:#b4bccf}
text{font:13px system-ui,sans-serif}.title{font-size:15px;font-weight:600}
@media(prefers-color-scheme:dark){.card{fill:#1c2128;stroke:#3d444d}.text{fill:#f0f6fc}.soft{fill:#a5aeb8}
.c0{fill:#7f9bff}.c1{fill:#565f6f}}"""


@dataclass(frozen=True)
class Chart:
    """Groups of bars, a bar a side; a row's name has `{}` for group and side, in this order."""

    name: str
    title: str
    unit: str
    results: str
    row: str
    groups: tuple[str, ...]
    sides: tuple[str, ...]
    labels: str = "{}"
    """How a group is called."""


CHARTS = (
    Chart(
        "launch-times", "Seconds until all ranks are up and have imported torch", "s", "launch", "launch: {} ranks: {}",
        ("2", "8", "16"), ("forgectl", "torchrun"), "{} ranks",
    ),
    Chart(
        "actors", "Seconds until all actors are up", "s", "messages", "start: {}: {}",
        ("1 actor", "8 actors", "16 actors"), ("forgectl", "monarch"),
    ),
    Chart(
        "calls", "Milliseconds of a call of all ranks", "ms", "messages", "call: {}: {}",
        ("1 rank", "2 ranks", "4 ranks", "8 ranks", "16 ranks"), ("forgectl", "monarch"),
    ),
    Chart(
        "arguments", "GB/s of a numpy argument; more is better", "GB/s", "messages",
        "argument: {} of numpy as argument: {}", ("1 MiB", "8 MiB", "64 MiB"), ("forgectl", "monarch"),
    ),
    Chart(
        "hosts", "Seconds until 1 to 64 hosts are up, all of them this machine", "s", "hosts",
        "scale: {}: until all are up{}", ("1 host", "8 hosts", "32 hosts", "64 hosts"), ("",),
    ),
)  # fmt: skip
NAMES = {"monarch": "Monarch"}


def svg(chart: Chart, median: Callable[[str, str], float]) -> str:
    """The chart; `median(results, row)` has its numbers."""
    values = [[median(chart.results, chart.row.format(g, s)) for s in chart.sides] for g in chart.groups]
    scale = (WIDTH - LEFT - RIGHT) / max(max(of_group) for of_group in values)
    named = [NAMES.get(side, side) for side in chart.sides]
    parts, y = [_text(20, 32, "text title", chart.title)], 58
    if len(named) > 1:
        x = LEFT
        for i, name in enumerate(named):
            parts += [f'<rect class="c{i}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>']
            parts += [_text(x + 18, y, "soft", name)]
            x += 110
        y += 16
    for group, of_group in zip(chart.groups, values, strict=True):
        middle = y + BAR * len(of_group) / 2 + 5
        parts.append(_text(LEFT - 12, middle, "text", chart.labels.format(group), anchor="end"))
        for i, value in enumerate(of_group):
            width = max(value * scale, 2)
            parts.append(f'<rect class="c{i}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" rx="2"/>')
            parts.append(_text(LEFT + width + 8, y + 12, "soft", f"{_short(value)} {chart.unit}"))
            y += BAR
        y += GAP
    height = y + 6
    said = "; ".join(
        f"{chart.labels.format(group)}: {_said(named, of_group, chart.unit)}"
        for group, of_group in zip(chart.groups, values, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(chart.title)}. {escape(said)}">\n<style>{STYLE}</style>\n'
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _said(names: Sequence[str], values: Sequence[float], unit: str) -> str:
    return ", ".join(f"{name} {_short(value)} {unit}".strip() for name, value in zip(names, values, strict=True))


def _short(value: float) -> str:
    return number(value) if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _text(x: float, y: float, kind: str, words: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
