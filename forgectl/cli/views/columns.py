"""The layout of a table: which columns a width has room for, and how wide each of them is. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from forgectl.frozen import dataclass

GAP = 2
ALIGNED = 48
"""The widest cell that widens its column: one longer name must not push all other rows apart."""
COMFORTABLE = 30
"""The width of names for whose sake other columns go."""
NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """One column. With `drop` it may be left out, the largest first; with `least`, its cells may be shortened."""

    heading: str
    drop: int = 0
    least: int = 0
    right: bool = False


def fit(width: int, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> dict[int, int]:
    """The columns that a table of `width` has, by their index, and how wide each is.

    First, columns without a single value go, then names are shortened to a comfortable width, then other columns go,
    and then names become as short as they must.
    """
    cells = [[cell_len(row[i]) for row in rows] for i in range(len(columns))]
    wanted = {i: max(len(c.heading), min(ALIGNED, max(cells[i], default=0))) for i, c in enumerate(columns)}
    modest = {
        i: min(w, max(COMFORTABLE, len(columns[i].heading))) if columns[i].least else w for i, w in wanted.items()
    }
    said = [any(row[i] != NOTHING for row in rows) for i in range(len(columns))]
    for i in sorted((i for i, c in enumerate(columns) if c.drop), key=lambda i: (said[i], -columns[i].drop)):
        if total(modest if said[i] else wanted) > width:
            del modest[i], wanted[i]
    chosen = {
        i: min(w, max(columns[i].least, len(columns[i].heading))) if columns[i].least else w for i, w in wanted.items()
    }
    spare = width - total(chosen)
    while spare > 0 and (narrow := [i for i in chosen if chosen[i] < wanted[i]]):
        chosen[min(narrow, key=lambda i: chosen[i])] += 1
        spare -= 1
    return chosen


def total(widths: dict[int, int]) -> int:
    """What a row of columns takes, with the gaps between them."""
    return sum(widths.values()) + GAP * (len(widths) - 1)


def shortened(text: str, width: int) -> str:
    """The text in `width` cells, with `…` for its middle if it is longer: the ends tell related names apart."""
    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    head = set_cell_size(text, width - 1 - tail)
    return f"{head}…{set_cell_size(text[::-1], tail)[::-1]}" if tail else f"{head}…"
