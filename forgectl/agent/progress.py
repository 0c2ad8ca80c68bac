"""Decides whether ranks hang: for how long each has made no progress, from what was seen of it. Pure.

Progress is a heartbeat, an endpoint call that begins or ends, a collective that is entered, and, if the spec says so, a
growing log. A rank counts only while it works: an actor's within a call; any other from its first progress on, or from
when it waits for others to join a process group.
"""

from __future__ import annotations

from forgectl.frozen import dataclass
from forgectl.model.plan import HANG_START, HangPolicy
from forgectl.rank.progress import BEGUN, ENDED


@dataclass(frozen=True)
class Signs:
    """What is seen of a rank. `counts` are those of `rank/progress.py`, empty if it has none.

    `entered` is the number of collectives that it has entered, and `joining` whether it waits for others to join a
    group; both are as before if it did not answer. `log` is the size of its log, 0 if that does not matter.
    """

    counts: tuple[int, ...] = ()
    entered: int = 0
    joining: bool = False
    log: int = 0

    @property
    def progress(self) -> tuple[int, ...]:
        """What changes with any progress."""
        return (*self.counts, self.entered, self.log)

    @property
    def in_call(self) -> bool:
        return len(self.counts) > ENDED and self.counts[BEGUN] > self.counts[ENDED]


class RankProgress:
    """One rank, from its start on. Times are in seconds by one monotonic clock."""

    def __init__(self, policy: HangPolicy, *, serves: bool, now: float) -> None:
        """`serves`: it is an actor's, and works only when it is called."""
        self._policy = policy
        self._serves = serves
        self._seen_at = now
        self._still = 0.0
        self.signs = Signs()

    def see(self, signs: Signs, now: float, longest: float) -> None:
        """Note what is seen now. Of the time since the last look at most `longest` counts: we may have been stopped."""
        self._still = 0.0 if signs.progress != self.signs.progress else self._still + min(now - self._seen_at, longest)
        self.signs, self._seen_at = signs, now

    def still(self, now: float) -> float | None:
        """Seconds without progress; None while it does not work."""
        return self._still + now - self._seen_at if self._works else None

    def hangs(self, early: float = 0.0) -> bool:
        """Whether it hangs, or will within `early` seconds."""
        return self._works and self._still + early >= self._bound

    @property
    def _works(self) -> bool:
        if self._serves:
            return self.signs.in_call
        return self._has_begun or self.signs.joining or self._policy.start is not None

    @property
    def _has_begun(self) -> bool:
        """Whether its first progress is over: for an actor's rank the end of a call, as its constructor is one."""
        counts = self.signs.counts
        if self._serves:
            return any(counts[ENDED:]) or counts[:1] > (0,) or self.signs.entered > 0
        return any(self.signs.progress)

    @property
    def _bound(self) -> float:
        if self._has_begun:
            return self._policy.after
        return HANG_START if self._policy.start is None else self._policy.start
