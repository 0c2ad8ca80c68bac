"""What `forgectl prune` shows: a row for each run that goes, and how much room that makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from forgectl.cli.views import render
from forgectl.cli.views.columns import Column
from forgectl.cli.views.table import Table
from forgectl.controller.retention import Keep, Superfluous, show_keep
from forgectl.system.sizes import show_bytes
from forgectl.system.times import timestamp

COLUMNS = (
    Column("RUN", least=10),
    Column("ENDED", drop=2),
    Column("SIZE", right=True),
    Column("WHY", drop=1),
)


def prune_view(gone: Sequence[Superfluous], keep: Keep, *, dry_run: bool) -> RenderableType:
    """The same for people."""
    if not gone:
        return Text(f"nothing to remove; kept is {show_keep(keep)}")
    rows = [
        (
            render.plain(one.ended.run),
            Text(render.clock(timestamp(one.ended.ended))),
            Text(show_bytes(one.ended.size)),
            Text(one.why),
        )
        for one in gone
    ]
    size = show_bytes(sum(one.ended.size for one in gone))
    verb = "would remove" if dry_run else "removed"
    return Group(Table(COLUMNS, rows), Text(f"{verb} {len(gone)} run{'s' * (len(gone) != 1)}, {size}"))


def prune_json(gone: Sequence[Superfluous], keep: Keep, *, dry_run: bool) -> dict[str, Any]:
    """The same as a JSON document."""
    runs = [
        {"run": g.ended.run, "ended_at": timestamp(g.ended.ended), "bytes": g.ended.size, "why": g.why} for g in gone
    ]
    limits = {"seconds": keep.age, "runs": keep.runs, "bytes": keep.size}
    return {"schema_version": 1, "dry_run": dry_run, "keep": limits, "runs": runs}
