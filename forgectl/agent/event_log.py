"""The agent's event log: events are numbered, kept until acknowledged, and replayed to a controller that connects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from forgectl.protocol.supervision import Event, Happening, MessengerGone, Notice, RankExited, Refused, StartFailed
from forgectl.redaction import Redaction
from forgectl.wire.envelope import Refusal

TEXT_FIELDS: dict[type, tuple[str, ...]] = {
    Refused: ("error",),
    Refusal: ("message", "hint"),
    StartFailed: ("message", "detail", "hint"),
    RankExited: ("oom", "error", "traceback", "log_tail"),
    Notice: ("message",),
    MessengerGone: ("why",),
}
"""Fields with text for people. Such text may contain secrets."""
MAX_TEXT = 32 * 1024
"""Most characters of such a text. Fields in `ENDS` keep their last characters, which name the cause."""
ENDS = ("detail", "traceback")


class EventLog:
    """Keeps the events that no controller has acknowledged, and all events of each mesh's current generation.

    With the second part, a controller that lost its journal can rebuild the present state (`since=0`). Every text that
    the agent reports passes through here: secrets are removed first, then long text is cut.
    """

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._events: list[tuple[Event, str, int]] = []  # with mesh and generation (-1: before the first)
        self._last = 0
        self._acked = 0
        self._current: dict[str, int] = {}
        self.listener: Callable[[Event], None] | None = None

    def emit(self, happening: Happening) -> None:
        """Number, keep and pass on what happened."""
        self._last += 1
        event = Event(self._last, _without_secrets(happening, self._redaction))
        generation = getattr(happening, "generation", -1)
        if generation > self._current.get(happening.mesh, -1):
            self._current[happening.mesh] = generation
            self._forget()
        self._events.append((event, happening.mesh, generation))
        if self.listener is not None:
            self.listener(event)

    def acknowledge(self, seq: int) -> None:
        """Note that the controller has written down the events up to `seq`."""
        self._acked = max(self._acked, min(seq, self._last))
        self._forget()

    def after(self, seq: int) -> list[Event]:
        """The kept events after `seq`, in order."""
        return [e for e, _, _ in self._events if e.seq > seq]

    def _forget(self) -> None:
        self._events = [
            (e, mesh, generation)
            for e, mesh, generation in self._events
            if e.seq > self._acked or generation in (-1, self._current.get(mesh, -1))
        ]


def _without_secrets(message: Any, redact: Redaction) -> Any:
    """The same message without secrets in its text."""
    changed: dict[str, Any] = {}
    for field in TEXT_FIELDS.get(type(message), ()):
        value = getattr(message, field)
        if isinstance(value, str):
            text = redact(value)
            changed[field] = text[-MAX_TEXT:] if field in ENDS else text[:MAX_TEXT]
        elif isinstance(value, tuple) and value:  # lines, redacted as one text: a secret may span several
            changed[field] = tuple(redact("\n".join(value)).split("\n"))
        elif value:
            changed[field] = _without_secrets(value, redact)
    return dataclasses.replace(message, **changed) if changed else message
