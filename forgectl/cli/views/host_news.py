"""What a waiting command prints about hosts that are not reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forgectl.cli.views import render
from forgectl.model.status import RunStatus

SHOWN = 8


class HostNews:
    """Reports each change once. A host that was lost or reached again before the first document is not reported."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def of(self, status: RunStatus) -> Iterator[str]:
        """A sentence for each host whose state has changed."""
        before, self._states = self._states, {h.name: h.state for h in status.hosts}
        for name, state in self._states.items():
            if state == before.get(name):
                continue
            if state == "reconnecting":
                yield f"host {name} is not reached; forgectl keeps trying until its lease of {status.lease:g} s is over"
            elif (name in before and state == "lost") or (before.get(name) == "reconnecting" and state == "up"):
                yield f"host {name} is {state}"


def no_answer_yet(names: Sequence[str]) -> None:
    """Print which hosts a command is waiting for."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    render.stderr().print(render.plain(f"forgectl: no answer yet from {', '.join(names[:SHOWN])}{more}"), style="dim")


def only_waits_for(status: RunStatus) -> list[str]:
    """The hosts that are not reached, if a run that is ending waits for nothing else; else []."""
    if status.state != "stopping":
        return []
    away = [h.name for h in status.hosts if h.state == "reconnecting"]
    left = {r.host for m in status.meshes for r in m.ranks if not r.ended}
    return away if left <= set(away) else []
