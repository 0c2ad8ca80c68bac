"""The agent's event log: numbered, kept until acknowledged, replayed to a controller that comes back or is new."""

from __future__ import annotations

from collections.abc import Callable

from forgectl.protocol import Event, Happening, pack


class EventLog:
    """Keeps what no controller has confirmed, and all of each mesh's current generation.

    The second part lets a controller that lost its journal rebuild the present from `since=0`.
    """

    def __init__(self) -> None:
        self._events: list[tuple[Event, str, int]] = []  # with mesh and generation (-1: before the first)
        self._last = 0
        self._acked = 0
        self._current: dict[str, int] = {}
        self.listener: Callable[[Event], None] | None = None

    def emit(self, happening: Happening) -> None:
        """Number, keep and pass on what happened."""
        self._last += 1
        event = Event(self._last, pack(happening))
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
