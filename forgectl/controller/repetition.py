"""Whether two generations in a row failed at the same place soon after their start, so that a third would, too. Pure.

A host that is lost, memory that ran out, a signal from outside and an error of the network or a disk need not be the
program's own: they say nothing of the next generation.
"""

from __future__ import annotations

import math
import re
import signal
from dataclasses import dataclass

from forgectl.stacks.places import is_users
from forgectl.system.processes import signal_name

SOON = 10.0
"""Seconds after the start of its ranks in which a failure counts: the imports of a large program take several."""
_OWN_SIGNALS = frozenset(
    (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP)
)
"""Signals by which a program ends because of what it does itself."""
_SURROUNDINGS = re.compile(
    r"^OSError$|Connect|BrokenPipe|Timeout|TimedOut|Network|DistStore|gaierror|URLError|HTTPError|Unavailable"
)
"""Names of exceptions about what may be another way the next time: a server that is not up yet, a port, a disk."""
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)


@dataclass(frozen=True)
class Fall:
    """A failure `seconds` after the start: equal ones have the same `key`; `how` continues "failed twice"."""

    key: tuple[object, ...]
    how: str
    seconds: float


def fall_of_exception(error: str, traceback: str, seconds: float) -> Fall | None:
    """The fall by an exception; `error` is its last line, such as `ValueError: no`. None if it says nothing."""
    frames = [(file, int(line)) for file, line in _FRAME.findall(_last(traceback))]
    kind = error.strip().rpartition("\n")[2].partition(":")[0]
    if not frames or seconds > SOON or _SURROUNDINGS.search(kind):
        return None
    file, line = next((frame for frame in reversed(frames) if is_users(frame[0])), frames[-1])
    return Fall((kind, *frames), f"at {file.rpartition('/')[2]}:{line}", seconds)


def fall_of_exit(exit_code: int | None, number: int | None, seconds: float) -> Fall | None:
    """The fall by an exit code other than 0, or by a signal; None if it says nothing."""
    if seconds > SOON:
        return None
    if number is not None:
        return Fall(("signal", number), f"by {signal_name(number)}", seconds) if number in _OWN_SIGNALS else None
    return Fall(("exit", exit_code), f"with exit code {exit_code}", seconds) if exit_code else None


def repeated(before: Fall | None, now: Fall | None) -> str | None:
    """Why a third generation would fail like the last two; None if it need not."""
    if before is None or now is None or before.key != now.key:
        return None
    within = max(1, math.ceil(max(before.seconds, now.seconds)))
    return f"failed twice {now.how} within {within} s of its start: not tried again"


def _last(traceback: str) -> str:
    """The last exception of a chain: the one that ended the rank."""
    return traceback.rpartition("Traceback (most recent call last)")[2]
