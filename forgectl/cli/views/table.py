"""Draws a table in the layout of `columns`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from forgectl.cli.views.columns import GAP, NOTHING, Column, fit, shortened, total

NARROWEST_REMARK = 30
"""Columns that long remarks need inside a table; with fewer they are printed below it."""


class Table:
    """A table of one line per row. With `remark`, each row has one cell more, the last, which has room for a text.

    Where a remark finds no room, it follows below the table, after `names` of its row. Without `head` only rows are
    drawn; `widest` rows decide the layout then.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[Text]],
        *,
        remark: str = "",
        names: int = 1,
        head: bool = True,
        widest: Sequence[Sequence[Text]] = (),
    ) -> None:
        self._columns = columns
        self._rows = rows
        self._remark = remark
        self._names = names
        self._head = head
        self._widest = widest or rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        count = len(self._columns)
        layout = fit(options.max_width, self._columns, [[cell.plain for cell in row[:count]] for row in self._widest])
        room = options.max_width - total(layout) - GAP
        longest = max((row[count].cell_len for row in self._widest), default=0) if self._remark else 0
        inside = bool(self._remark) and room >= max(min(longest, NARROWEST_REMARK), len(self._remark))
        reserved = min(longest, NARROWEST_REMARK) if inside else 0
        if self._head:
            heading = self._line([Text(c.heading, "bold") for c in self._columns], layout, options.max_width)
            remark = Text(self._remark, "bold") if inside else None
            yield from self._with_remark(console, heading, remark, options.max_width)
        for row in self._rows:
            line = self._line(row, layout, options.max_width, for_remark=reserved)
            yield from self._with_remark(console, line, row[count] if inside else None, options.max_width)
        if self._remark and not inside:
            for row in self._rows:
                if row[count].plain != NOTHING:
                    name = Text("/").join(row[: self._names])
                    below = Text.assemble(name, ": ", row[count]).wrap(console, max(1, options.max_width - 4))
                    for i, part in enumerate(below):
                        part.rstrip()
                        yield Text.assemble("    " if i else "  ", part)

    def _line(self, row: Sequence[Text], layout: dict[int, int], width: int, *, for_remark: int = 0) -> Text:
        """A row's cells. A cell that is too long moves those after it if the row has room, else it is shortened."""
        full = sum(max(w, row[i].cell_len) for i, w in layout.items()) + GAP * (len(layout) - 1)
        room_for_all = full + for_remark + GAP * bool(for_remark) <= width
        line = Text(no_wrap=True, overflow="ellipsis", end="\n")
        for place, (i, w) in enumerate(layout.items()):
            cell = row[i] if room_for_all else Text(shortened(row[i].plain, w), row[i].style)
            pad = " " * (w - cell.cell_len)
            line.append(" " * GAP if place else "")
            line.append_text(Text(pad) + cell if self._columns[i].right else cell + Text(pad))
        return line

    @staticmethod
    def _with_remark(console: Console, line: Text, remark: Text | None, width: int) -> RenderResult:
        """The line with its remark, which goes on below itself if it is longer than its room."""
        if remark is None:
            line.rstrip()
            yield line
            return
        start = line.cell_len + GAP
        first, *rest = remark.wrap(console, max(1, width - start))
        yield Text.assemble(line, " " * GAP, first, no_wrap=True, overflow="ellipsis")
        for part in rest:
            yield Text.assemble(" " * start, part, no_wrap=True, overflow="ellipsis")
