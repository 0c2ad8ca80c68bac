"""The agent's event log: numbered, kept until acknowledged, replayed to a controller that comes back or is new."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from forgectl.protocol.supervision import Event, Happening, MessengerGone, Notice, RankExited, Refused, StartFailed
from forgectl.redaction import Redaction
from forgectl.wire.envelope import Refusal

WORDS: dict[type, tuple[str, ...]] = {
    Refused: ("error",),
    Refusal: ("message", "hint"),
    StartFailed: ("message", "detail"),
    RankExited: ("oom", "error", "traceback", "log_tail"),
    Notice: ("message",),
    MessengerGone: ("why",),
}
"""Fields with text for people, in which there may be secrets."""
MAX_TEXT = 32 * 1024
"""Characters of such a text; of `ENDS` the last ones stay, which name the cause."""
ENDS = ("detail", "traceback")


class EventLog:
    """Keeps what no controller has confirmed, and all of each mesh's current generation.

    The second part lets a controller that lost its journal rebuild the present from `since=0`. All that the agent tells
    goes through here: secrets are taken out first, before anything is cut.
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
        """Events up to `seq` are safe with the controller."""
        self._acked = max(self._acked, min(seq, self._last))
        self._forget()

    def after(self, seq: int) -> list[Event]:
        """What is kept of the events after `seq`, in order."""
        return [e for e, _, _ in self._events if e.seq > seq]

    def _forget(self) -> None:
        self._events = [
            (e, mesh, generation)
            for e, mesh, generation in self._events
            if e.seq > self._acked or generation in (-1, self._current.get(mesh, -1))
        ]


def _without_secrets(message: Any, redact: Redaction) -> Any:
    """The same message without secrets in its words."""
    changed: dict[str, Any] = {}
    for field in WORDS.get(type(message), ()):
        value = getattr(message, field)
        if isinstance(value, str):
            text = redact(value)
            changed[field] = text[-MAX_TEXT:] if field in ENDS else text[:MAX_TEXT]
        elif isinstance(value, tuple) and value:  # lines: redacted as one text, as a secret may have several
            changed[field] = tuple(redact("\n".join(value)).split("\n"))
        elif value:
            changed[field] = _without_secrets(value, redact)
    return dataclasses.replace(message, **changed) if changed else message
