"""What is kept of the ranks of a mesh that hangs, or did not answer a call: the verdict, and their stacks. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from forgectl.controller.records import Diagnosed
from forgectl.controller.state import MOST_TEXT, MeshState
from forgectl.model.event import ranges
from forgectl.stacks.diagnosis import Kind, diagnose
from forgectl.stacks.evidence import RankEvidence
from forgectl.stacks.places import fold
from forgectl.system.times import show_duration
from forgectl.wire.codec import to_json

SHOWN_PLACES = 4


def describe_hang(mesh: MeshState, ranks: Sequence[RankEvidence]) -> Diagnosed | None:
    """The record for a mesh whose ranks hang, from what was seen of all of them; None if they have gone on."""
    if not mesh.to_diagnose:
        return None
    verdict = diagnose(ranks)
    hung = sorted({rank for what in mesh.hung.values() for rank in what.ranks})
    seconds = max(what.seconds for what in mesh.hung.values())
    lines = verdict.text.splitlines() or [_places([r for r in ranks if r.rank in hung])]
    message = f"no progress for {show_duration(round(seconds))}: {lines[0]}"[:MOST_TEXT]
    cut = tuple(line[:MOST_TEXT] for line in lines)
    return Diagnosed(mesh.name, mesh.generation, message, cut, verdict.suspects or _alone(mesh, verdict.kind, hung))


def _alone(mesh: MeshState, kind: Kind, hung: Sequence[int]) -> tuple[int, ...]:
    """The ranks that hang while the others go on, where none waits in a collective. Hosts report one by one."""
    others_go_on = len(hung) < len(mesh.ranks) and len(mesh.plan.hosts) == 1
    return tuple(hung) if kind == "nothing" and others_go_on else ()


def describe_late(what: str, mesh: MeshState, ranks: Sequence[RankEvidence]) -> Diagnosed:
    """The record for a call that had no answer in time, which `what` says, from what was seen of its ranks."""
    verdict = diagnose(ranks)
    lines = verdict.text.splitlines() or [_places(ranks)]
    message = f"{what}: {lines[0]}"[:MOST_TEXT]
    cut = tuple(line[:MOST_TEXT] for line in lines)
    return Diagnosed(mesh.name, mesh.generation, message, cut, verdict.suspects, call=True)


def incident_of(what: Diagnosed, ranks: Sequence[RankEvidence]) -> dict[str, Any]:
    """What an incident has of it: the verdict, line by line, the suspects, and the stacks, equal ones together."""
    stacks = [{"ranks": ranges(numbers), **seen} for numbers, seen in _alike(ranks, what.suspects)]
    return {"verdict": list(what.verdict), "suspects": list(what.suspects), "stacks": stacks}


def _alike(ranks: Sequence[RankEvidence], suspects: Collection[int]) -> list[tuple[list[int], dict[str, Any]]]:
    """The stacks of ranks, each once with the ranks that have it: the suspects' first, as long ones may be cut."""
    found: dict[str, tuple[list[int], dict[str, Any]]] = {}
    for rank in sorted(ranks, key=lambda r: r.rank not in suspects):
        seen = {k: v for k, v in to_json(rank).items() if k in ("host", "view", "detail", "source", "threads")}
        found.setdefault(json.dumps(seen), ([], seen))[0].append(rank.rank)
    return list(found.values())


def _places(ranks: Sequence[RankEvidence]) -> str:
    found = fold(ranks)
    more = " · …" if len(found) > SHOWN_PLACES else ""
    return " · ".join(f"[{ranges(numbers)}] {text}" for numbers, text in found[:SHOWN_PLACES]) + more
