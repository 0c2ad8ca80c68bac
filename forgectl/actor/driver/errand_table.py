"""What the driver does for other processes, by process and number. It is given up when nobody waits any more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

MOST_MISSED = 7
"""Ticks without a sign of life after which a process counts as ended. Ticks are counted, not time: after a while in
which the driver itself stood still, the signs of life that came meanwhile are read before the next tick."""


class Cancellable(Protocol):
    """A task, or a Loan."""

    def cancel(self) -> Any: ...


class ErrandTable:
    """The errands under way. Use it in one event loop."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, dict[Cancellable, None]]] = {}
        self._missed: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(errands) for numbers in self._of.values() for errands in numbers.values())

    def add(self, asker: str, number: int, errand: Cancellable) -> None:
        """Note that it is under way for that request of that process."""
        self._of.setdefault(asker, {}).setdefault(number, {})[errand] = None
        self._missed.setdefault(asker, 0)

    def remove(self, asker: str, number: int, errand: Cancellable) -> None:
        """Forget it: it has ended."""
        numbers = self._of.get(asker, {})
        errands = numbers.get(number, {})
        errands.pop(errand, None)
        if not errands:
            numbers.pop(number, None)
        if not numbers:
            self._of.pop(asker, None)
            self._missed.pop(asker, None)

    def give_up(self, asker: str, number: int) -> None:
        """Cancel what is under way for one request."""
        for errand in list(self._of.get(asker, {}).get(number, {})):
            errand.cancel()

    def heard(self, asker: str) -> None:
        """Note a sign of life."""
        if asker in self._missed:
            self._missed[asker] = 0

    def reconcile(self, asker: str, latest: int, under_way: Collection[int]) -> None:
        """Give up its requests up to number `latest` that are not among those: the report of their end was lost.

        Requests with higher numbers began after the sign of life was written.
        """
        waited_for = frozenset(under_way)
        for number in list(self._of.get(asker, {})):
            if number <= latest and number not in waited_for:
                self.give_up(asker, number)

    def tick(self) -> None:
        """Give up what is under way for processes that were not heard of for too long."""
        for asker in list(self._missed):
            self._missed[asker] += 1
            if self._missed[asker] > MOST_MISSED:
                for number in list(self._of[asker]):
                    self.give_up(asker, number)
