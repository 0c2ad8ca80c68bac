"""What a waiting command says of hosts that are not reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from forgectl.cli.views import render

SHOWN = 8


class HostNews:
    """Tells of each change once. What was lost, or reached again, before the first document is no news."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def of(self, document: dict[str, Any]) -> Iterator[str]:
        """A sentence a host whose state has changed."""
        before, self._states = self._states, {h["name"]: h["state"] for h in document["hosts"]}
        for name, state in self._states.items():
            if state == before.get(name):
                continue
            if state == "reconnecting":
                yield f"host {name} is not reached; tried again until its lease of {document['lease']:g} s is over"
            elif (name in before and state == "lost") or (before.get(name) == "reconnecting" and state == "up"):
                yield f"host {name} is {state}"


def no_answer_yet(names: Sequence[str]) -> None:
    """Say which hosts a command has been waiting for."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    render.stderr().print(render.plain(f"forgectl: no answer yet from {', '.join(names[:SHOWN])}{more}"), style="dim")


def only_waits_for(document: dict[str, Any]) -> list[str]:
    """The hosts that are not reached, where a run that is to end waits for nothing else."""
    if document.get("state") != "stopping":
        return []
    away = [h["name"] for h in document["hosts"] if h["state"] == "reconnecting"]
    left = {r["host"] for m in document["meshes"] for r in m["ranks"] if r["state"] in ("starting", "running")}
    return away if left <= set(away) else []
