"""Incidents of a run: a small file for each failure, written before anything of the mesh is ended.

An incident has the failure, the last lines of the logs of its mesh at that moment, and the states of ranks and hosts.
Secrets are removed: see `redaction.of_run`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from forgectl.agent import rank_logs
from forgectl.controller.run_dir import RunDir
from forgectl.controller.state import MeshState, RankState
from forgectl.model.event import SCHEMA, Failure, RunEvent, failure_json
from forgectl.redaction import Redaction
from forgectl.system.files import write_whole
from forgectl.system.times import timestamp

MOST = 20
"""Most incidents of a run: the first ones stay, as they often show the cause, and the newest."""
MOST_BYTES = 256 * 1024
MOST_RANKS = 16
"""Most ranks of an incident that are listed, with the last lines of their logs; the root cause comes first."""
LINES = 20


class Incidents:
    """Writes the incidents of one run. What goes wrong, as with a full disk, leaves one out and harms nothing.

    `reads_logs`: whether log lines may be stored. They may not where the run has secrets that are not known here.
    """

    def __init__(self, run_dir: RunDir, redact: Redaction, *, reads_logs: bool) -> None:
        self._dir = run_dir
        self._redact = redact
        self._reads_logs = reads_logs

    def write(self, event: RunEvent, mesh: MeshState | None, hosts: dict[str, str], **more: Any) -> None:
        """Write the incident of an event, with `more` that is known of it, such as stacks. `hosts`: host → state."""
        document = {
            "schema_version": SCHEMA,
            "seq": event.seq,
            "time": timestamp(event.time, "milliseconds"),
            "run": event.run,
            "event": event.event,
            "message": event.message,
            "mesh": event.mesh,
            "host": event.host,
            "failure": event.failure and failure_json(event.failure),
            "hosts": hosts,
            "ranks": self._ranks(mesh, event.failure) if mesh else [],
            **more,
        }
        path = self._dir.incident(event.seq, event.subject)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._make_room(path.parent)
            write_whole(path, self._text(document))

    def amend(self, seq: int, event: RunEvent) -> None:
        """Put what is known at the end of a generation into the incident number `seq`: who was first may change."""
        if event.failure is None or event.mesh is None:
            return
        path = self._dir.incident(seq, event.mesh)
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(path.read_bytes())
            write_whole(path, self._text({**document, "failure": failure_json(event.failure)}))

    def _text(self, document: dict[str, Any]) -> bytes:
        """The document as JSON, without secrets and within MOST_BYTES: what is said of single ranks goes first."""
        while True:
            text = self._redact(json.dumps(document, indent=1)).encode()
            if len(text) <= MOST_BYTES:
                return text
            if long := [name for name in ("ranks", "stacks") if document.get(name)]:
                document = {**document, long[0]: document[long[0]][: len(document[long[0]]) // 2]}
            else:
                return self._redact(json.dumps({**document, "failure": None, "hosts": {}}, indent=1)).encode()

    def _ranks(self, mesh: MeshState, failure: Failure | None) -> list[dict[str, Any]]:
        first = failure.rank if failure else None
        ranks = sorted(mesh.ranks.values(), key=lambda r: (r.plan.rank != first, r.plan.rank))[:MOST_RANKS]
        return [self._rank(rank, mesh) for rank in ranks]

    def _rank(self, rank: RankState, mesh: MeshState) -> dict[str, Any]:
        end = rank.exit
        return {
            "rank": rank.plan.rank,
            "host": rank.plan.host,
            "pid": rank.pid,
            "state": rank.state,
            "exit_code": end.exit_code if end else None,
            "signal": end.signal if end else None,
            "log_tail": list(end.log_tail) if end and end.log_tail else self._tail(rank, mesh),
        }

    def _tail(self, rank: RankState, mesh: MeshState) -> list[str]:
        """The last lines of its log, as far as it is on this machine."""
        if not (self._reads_logs and rank.log):
            return []
        return rank_logs.tail(self._dir.log(mesh.name, mesh.generation, rank.plan.rank), LINES)

    @staticmethod
    def _make_room(folder: Path) -> None:
        old = sorted(folder.glob("*.json"))
        for path in old[MOST // 2 : len(old) - MOST // 2 + 1] if len(old) >= MOST else ():
            path.unlink()


def read_incident(run_dir: RunDir, seq: int, subject: str) -> dict[str, Any] | None:
    """The incident of an event; None if there is none."""
    try:
        found = json.loads(run_dir.incident(seq, subject).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
