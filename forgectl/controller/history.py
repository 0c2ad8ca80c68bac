"""The history of a run as its journal has it: its state and its events, while it lives and afterwards."""

from __future__ import annotations

import contextlib

from forgectl.controller import journal
from forgectl.controller.events import Events
from forgectl.controller.host_claims import unsound
from forgectl.controller.records import Happened, Record
from forgectl.controller.run_dir import RunDir
from forgectl.controller.run_state import Run
from forgectl.model.event import RunEvent
from forgectl.model.plan import Plan


class History:
    """Restores a run from its journal, as far as that goes, without its controller."""

    def __init__(self, run_dir: RunDir) -> None:
        """Begin at the first record; raises InternalError if the run's plan cannot be read."""
        self._id, self._plan = run_dir.run, run_dir.read_plan()
        self._journal = journal.Follower(run_dir.journal_file)
        self._seen = 0
        self._begin(self._plan)

    def _begin(self, plan: Plan) -> None:
        self.run = Run.new(self._id, plan)
        self.events = Events(self.run)

    def more(self) -> list[RunEvent]:
        """The events since the last call."""
        records, again = self._journal.more()
        if again:
            self._begin(self._plan)
        found = [event for when, monotonic, record in records for event in self._take(when, monotonic, record)]
        fresh = [event for event in found if event.seq > self._seen]
        self._seen = max(self._seen, self.events.count)
        return fresh

    def _take(self, when: float, monotonic: float | None, record: Record) -> list[RunEvent]:
        if isinstance(record, Happened) and unsound(self.run, record):
            return []
        with contextlib.suppress(Exception):  # a damaged journal may lack what the record builds on
            self.run.apply(when, record)
            return self.events.after(record, when, monotonic)
        return []
