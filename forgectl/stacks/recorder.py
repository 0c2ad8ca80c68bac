"""Reads torch's flight recorder: the collectives of a rank, of which only the last ones matter."""

from __future__ import annotations

import re
from typing import Any

from forgectl.stacks.evidence import Collective

LAST = 16
"""Collectives kept of each group: the last ones, and as many of those that wait."""
_PEER = re.compile(r"(?:send|recv) \d+(?:->|<-)(\d+)$")


def read(document: Any, now: float) -> tuple[Collective, ...]:
    """The last collectives of each group and backend, in their order, from a recorder's JSON.

    `now` is the Unix time on the rank's host. Raises ValueError, TypeError or KeyError if it is not a recorder's JSON.
    """
    groups: dict[tuple[str, str, bool], list[Collective]] = {}
    for found in (_collective(entry, now) for entry in document.get("entries") or ()):
        between_two = found.peer is not None
        entries = groups.setdefault((found.backend, found.group, between_two), [])
        if entries and found.sequence < entries[-1].sequence:
            entries.clear()  # a later group of the same name: the earlier one was destroyed
        entries.append(found)
    return tuple(kept for entries in groups.values() for kept in _last(entries))


def _last(entries: list[Collective]) -> list[Collective]:
    older = [e for e in entries[:-LAST] if e.pending][:LAST]
    return [*older, *entries[-LAST:]]


def _collective(entry: Any, now: float) -> Collective:
    name, description = entry["process_group"]
    backend, _, operation = str(entry["profiling_name"]).rpartition(":")
    between_two = bool(entry["is_p2p"])
    peer = _PEER.match(operation)
    return Collective(
        group=str(name)[:100],
        description=str(description)[:100],
        backend=backend[:20],
        sequence=int(entry["p2p_seq_id" if between_two else "collective_seq_id"]),
        operation=operation.partition(" ")[0][:100],
        shapes=tuple(tuple(int(n) for n in shape) for shape in entry["input_sizes"][:8]),
        dtypes=tuple(str(d)[:20] for d in entry["input_dtypes"][:8]),
        pending=entry["state"] != "completed" and not entry["retired"],
        age=round(max(0.0, now - int(entry["time_created_ns"]) / 1e9), 3),
        peer=(int(peer[1]) if peer else -1) if between_two else None,
    )
