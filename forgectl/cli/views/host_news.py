"""What a waiting command says of hosts that are not reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forgectl.cli.views import render
from forgectl.model.status import RunStatus

SHOWN = 8


class HostNews:
    """Tells of each change once. What was lost, or reached again, before the first document is no news."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def of(self, status: RunStatus) -> Iterator[str]:
        """A sentence a host whose state has changed."""
        before, self._states = self._states, {h.name: h.state for h in status.hosts}
        for name, state in self._states.items():
            if state == before.get(name):
                continue
            if state == "reconnecting":
                yield f"host {name} is not reached; tried again until its lease of {status.lease:g} s is over"
            elif (name in before and state == "lost") or (before.get(name) == "reconnecting" and state == "up"):
                yield f"host {name} is {state}"


def no_answer_yet(names: Sequence[str]) -> None:
    """Say which hosts a command has been waiting for."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    render.stderr().print(render.plain(f"forgectl: no answer yet from {', '.join(names[:SHOWN])}{more}"), style="dim")


def only_waits_for(status: RunStatus) -> list[str]:
    """The hosts that are not reached, where a run that is to end waits for nothing else."""
    if status.state != "stopping":
        return []
    away = [h.name for h in status.hosts if h.state == "reconnecting"]
    left = {r.host for m in status.meshes for r in m.ranks if not r.ended}
    return away if left <= set(away) else []
