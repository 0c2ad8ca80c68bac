"""A caller's side of a stream: the values of several ranks that are here, and the questions for more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from forgectl.actor.outflow import FAILED, GOING, Batch
from forgectl.errors import ActorDied, UnreachableError
from forgectl.messages import pickling
from forgectl.system.futures import Future

AHEAD = 2
"""Questions for values that are under way to a rank: while the caller works on one answer, the next one comes."""

Ask = Callable[[], Future[Batch]]


class Over(Exception):
    """The stream has no more values."""


class Inflow:
    """The values of several sources: those that are here, and the questions for more. One consumer at a time.

    `asks` has a question for each source. `opened` is done when all have ended: it fails with what one of them raised;
    With `first_only` no values but the first source's count. `loads` makes a value of what a batch has.
    """

    def __init__(
        self,
        label: str,
        asks: Iterable[Ask],
        opened: Future[Any],
        leave: Callable[[], object] = lambda: None,
        *,
        first_only: bool = False,
        ahead: int = AHEAD,
        loads: Callable[[Any], Any] = pickling.loads,
    ) -> None:
        self.label = label
        self.opened = opened
        self._tell = leave
        self._loads = loads
        self._bell = _Bell()
        self._sources = deque(_Source(ask, self._bell, i == 0 or not first_only) for i, ask in enumerate(asks))
        self._outcome: Future[Any] | None = None  # what it ends with, after the values that are here
        self._left = False
        self._going = len(self._sources)  # sources of which no end was reported
        self._bell.hear(opened)
        for source in self._sources:
            source.ask_for_more(ahead)

    @classmethod
    def of_calls(cls, label: str, calls: Iterable[Ask]) -> Inflow:
        """Of plain calls: each answer is a batch with the value itself, which is the last one."""
        opened = Future[Any](label)
        opened.succeed(None)
        return cls(label, calls, opened, ahead=1, loads=lambda value: value)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for a value."""
        waiter = self._bell.waiter
        return waiter is not None and not waiter.done()

    def pop(self) -> tuple[Any] | None:
        """A value; None if none is here yet: `wait` for it. At the end it raises Over, or what a source raised."""
        if self._left:
            raise Over
        self._bell.has_rung = False
        while (source := self._next_ready()) is not None:
            if source.values:
                value = self._loads(source.values.popleft())
                if not source.values:
                    self._sources.rotate(-1)  # the others' turn
                return (value,)
            self._receive(source)
        if self._outcome is None and not self._sources:
            self._outcome = self.opened
        if self._outcome is None or not self._outcome.done():
            return None
        self._outcome.result()
        raise Over

    def _next_ready(self) -> _Source | None:
        for _ in range(len(self._sources)):
            source = self._sources[0]
            if source.values or (source.asked and source.asked[0].done()):
                return source
            if source.asked:
                self._sources.rotate(-1)
            else:
                self._sources.popleft()
        return None

    def _receive(self, source: _Source) -> None:
        answer = source.asked.popleft()
        error = answer.exception()
        values, state = ([], FAILED) if error is not None else answer.result()
        if source.counts:
            source.values.extend(values)
        if state == FAILED and self._outcome is None:
            self._outcome = self.opened if error is None else answer
        if error is None and state != GOING:
            self._going -= 1
        if state != GOING:
            source.give_up()
        elif self._outcome is None:
            source.ask_for_more(1)

    def wait(self) -> Future[None]:
        """Done once there is something for `pop`."""
        waits_for = [source.asked[0] for source in self._sources if source.asked]
        waiter = self._bell.waiter = _Waiter(self.label, [*waits_for, self.opened])
        if self._bell.has_rung:
            waiter.succeed(None)
        return waiter

    def leave(self) -> bool:
        """Want no more; whether generators may still run. Only once."""
        if self._left:
            return False
        self._left = True
        for source in self._sources:
            source.values.clear()
            source.give_up()
        if self._going:
            self._tell()
        self.opened._then(_forgive_death)
        return not self.opened.done()


class _Source:
    """One rank's part: values that are here, and the questions whose answers have the next ones, in their order."""

    __slots__ = ("_ask", "_bell", "asked", "counts", "values")

    def __init__(self, ask: Ask, bell: _Bell, counts: bool) -> None:
        self._ask = ask
        self._bell = bell
        self.counts = counts
        self.asked: deque[Future[Batch]] = deque()
        self.values: deque[Any] = deque()

    def ask_for_more(self, questions: int) -> None:
        for _ in range(questions):
            question = self._ask()
            self._bell.hear(question)
            self.asked.append(question)

    def give_up(self) -> None:
        """Nobody wants the answers."""
        while self.asked:
            question = self.asked.popleft()
            if not question.cancel() and not question.cancelled():
                question.exception()


class _Bell:
    """Rings when a question is answered, in whatever thread. It keeps no stream alive that nobody else has."""

    __slots__ = ("has_rung", "waiter")

    def __init__(self) -> None:
        self.has_rung = False
        self.waiter: Future[None] | None = None

    def hear(self, of: Future[Any]) -> None:
        of._then(self._ring)

    def _ring(self, _: object) -> None:
        self.has_rung = True
        if (waiter := self.waiter) is not None:
            waiter.succeed(None)


class _Waiter(Future[None]):
    """Done at the next ring."""

    __slots__ = ("_of",)

    def __init__(self, label: str, of: Sequence[Future[Any]]) -> None:
        super().__init__(label)
        self._of = of

    def _waited_for(self) -> None:
        for future in self._of:
            future._waited_for()

    def _ended(self) -> None:
        self._of = ()


def _forgive_death(opened: Future[Any]) -> None:
    """Whoever has left a stream does not want to know that its rank died; but what a `finally` block raised is told."""
    if isinstance(opened._error, (ActorDied, UnreachableError)):
        opened.exception()


class RoutedInflow:
    """An Inflow that `begun` will give, once a service has chosen a replica. Its methods are those of Inflow."""

    def __init__(self, label: str, begun: Future[Inflow]) -> None:
        self.label = label
        self._begun = begun
        self._left = False

    @property
    def opened(self) -> Future[Any]:
        return self._begun.result().opened

    @property
    def is_waited_for(self) -> bool:
        there = _stream_of(self._begun)
        return there is not None and there.is_waited_for

    def pop(self) -> tuple[Any] | None:
        if self._left:
            raise Over
        return self._begun.result().pop() if self._begun.done() else None

    def wait(self) -> Future[Any]:
        return self._begun.result().wait() if self._begun.done() else self._begun

    def leave(self) -> bool:
        if self._left:
            return False
        self._left = True
        self._begun.cancel()
        if (there := _stream_of(self._begun)) is not None:
            return there.leave()
        self._begun._then(_leave_begun)  # it may come all the same
        return False


def _stream_of(begun: Future[Inflow]) -> Inflow | None:
    """The stream, if it has begun; None, too, if it never will."""
    return begun.result() if begun.done() and begun._error is None else None


def _leave_begun(begun: Future[Inflow]) -> None:
    if (there := _stream_of(begun)) is not None:
        there.leave()
