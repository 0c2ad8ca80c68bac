"""How `forgectl stack` shows where ranks are: those at the same place in one line, or whole stacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from forgectl.cli.shown_stacks import SeenMesh
from forgectl.cli.views.render import plain
from forgectl.model.event import ranges
from forgectl.stacks.diagnosis import diagnose
from forgectl.stacks.evidence import RankEvidence, ThreadStack
from forgectl.stacks.places import fold, short, where
from forgectl.wire.codec import to_json

_BY = {"rank": "", "signal": "; it did not answer, so by a signal", "py-spy": "; by py-spy", "": ""}
_NUMBERED = re.compile(r"0x[0-9a-f]+|\d+")
"""What differs between the names of equal threads of two ranks."""


def stack_view(meshes: Sequence[SeenMesh], *, whole: bool) -> RenderableType:
    """A line for each place where ranks are; `whole`: with all calls of all threads."""
    lines: list[RenderableType] = []
    for seen in meshes:
        lines.append(Text(""))
        lines.append(_heading(seen))
        lines += [plain(line) for line in diagnose(seen.ranks).text.splitlines()]
        lines += _whole(seen) if whole else _places(seen)
    return Group(*lines[1:])


def document(run: str, meshes: Sequence[SeenMesh]) -> dict[str, Any]:
    """The same as JSON."""
    return {"schema_version": 1, "run": run, "meshes": [_document(seen) for seen in meshes]}


def _document(seen: SeenMesh) -> dict[str, Any]:
    return {
        "mesh": seen.mesh.mesh,
        "generation": seen.mesh.generation,
        "verdict": to_json(diagnose(seen.ranks)),
        "places": [{"ranks": list(ranks), "where": text} for ranks, text in fold(seen.shown)],
        "ranks": [to_json(rank) for rank in seen.shown],
    }


def _heading(seen: SeenMesh) -> Text:
    count = len(seen.ranks)
    return Text.assemble((seen.mesh.mesh, "bold"), f": {count} rank{'s' if count != 1 else ''}")


def _places(seen: SeenMesh) -> Iterator[Text]:
    views = {r.rank: r.view for r in seen.shown}
    folded = fold(seen.shown)
    width = max((len(ranges(ranks)) + 2 for ranks, _ in folded), default=0)
    for ranks, text in folded:
        style = "" if views[ranks[0]] == "seen" else "yellow"
        yield Text.assemble(f"  {f'[{ranges(ranks)}]':<{width}}  ", (plain(text).plain, style))


def _whole(seen: SeenMesh) -> Iterator[Text]:
    groups: dict[Any, list[RankEvidence]] = {}
    for rank in seen.shown:
        threads = tuple((_NUMBERED.sub("", t.name), t.frames) for t in rank.threads)
        groups.setdefault((threads, "" if threads else rank.detail), []).append(rank)
    for ranks in groups.values():
        first = ranks[0]
        yield Text.assemble(
            (f"  [{ranges(r.rank for r in ranks)}]", "bold"),
            f" {plain(where(first)).plain}",
            (f"  (pid {first.pid} on {plain(first.host).plain}{_BY[first.source]})", "dim"),
        )
        for thread in first.threads:
            yield from _calls(thread)


def _calls(thread: ThreadStack) -> Iterator[Text]:
    yield Text(f"    {'task ' if thread.task else ''}{plain(thread.name).plain}", "bold" if not thread.task else "")
    for frame in thread.frames:
        place = f"{short(frame.file)}:{frame.line}" if frame.line else short(frame.file)
        yield Text.assemble(f"      {plain(frame.function).plain} ", (f"({plain(place).plain})", "dim"))
