"""Prints events, a line each: for people in columns, for programs as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from forgectl.cli.views.json_text import json_text
from forgectl.log_output.terminal_text import harmless
from forgectl.model.event import RunEvent, event_json
from forgectl.redaction import of_run
from forgectl.system.times import timestamp

WIDEST = 28
"""Columns up to which shorter subjects are padded."""
_LONGEST = len("controller_replaced")


class EventPrinter:
    """Writes events to stdout and flushes after each batch. Errors of the stream (BrokenPipeError) are raised."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._redact = of_run(())
        self._width = 0

    def show(self, events: Iterable[RunEvent]) -> None:
        """Print these events."""
        found = list(events)
        self._width = max([self._width, *(min(len(event.subject), WIDEST) for event in found)])
        for event in found:
            line = json_text(event_json(event), indent=None) if self._as_json else self._line(event)
            sys.stdout.write(self._redact(line))
        sys.stdout.flush()

    def _line(self, event: RunEvent) -> str:
        subject = harmless(event.subject, color=False)
        message = harmless(event.message.replace("\n", " "), color=False)
        return f"{timestamp(event.time, 'milliseconds')} {event.event:<{_LONGEST}} {subject:<{self._width}} {message}\n"
