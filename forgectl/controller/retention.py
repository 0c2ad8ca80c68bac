"""Which ended runs are kept: a policy such as `30d, 100 runs, 10 GiB`, and what it lets go. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from forgectl.errors import UsageError
from forgectl.frozen import dataclass
from forgectl.system.sizes import BYTES, show_bytes
from forgectl.system.times import SECONDS, show_duration

VARIABLE = "FORGECTL_KEEP"
"""The environment variable that has the policy."""
EVERYTHING = "everything"
"""The policy by which no run ever goes."""
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]+)")
_AGES = {unit: SECONDS[unit] for unit in "smhd"} | {"w": 7 * SECONDS["d"]}
_SIZES = BYTES | {letter: BYTES[f"{letter}ib"] for letter in "kgt"}  # `m` are minutes


@dataclass(frozen=True)
class Keep:
    """Limits of what is kept: seconds since a run's end, the number of ended runs, their bytes. None: no limit."""

    age: float | None = None
    runs: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended, by its id; `ended` is a Unix time, `size` the bytes that its folder takes."""

    run: str
    ended: float
    size: int


@dataclass(frozen=True)
class Superfluous:
    """A run that is not kept; `why` names the limit, such as `older than 30d`."""

    ended: EndedRun
    why: str


def parse_keep(text: str, where: str) -> Keep:
    """A policy from its text. A limit that the text does not name does not hold. Raises UsageError, citing `where`."""
    if text.strip().lower() == EVERYTHING:
        return Keep()
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        unit = match[2].lower() if match else ""
        kind = "age" if unit in _AGES else "size" if unit in _SIZES else "runs" if unit in ("run", "runs") else ""
        if match is None or not kind or (kind == "runs" and "." in match[1]):
            hint = f'such as "30d, 100 runs, 10 GiB", each of them optional; or "{EVERYTHING}"'
            raise UsageError(f"{where}: {part.strip()!r} is not a limit of what is kept", hint=hint)
        if kind in limits:
            raise UsageError(f"{where}: {text!r} has two limits of the same kind")
        limits[kind] = float(match[1]) * (_AGES.get(unit) or _SIZES.get(unit) or 1)
    runs, size = limits.get("runs"), limits.get("size")
    return Keep(limits.get("age"), None if runs is None else int(runs), None if size is None else int(size))


DEFAULT = parse_keep("30d, 100 runs, 10 GiB", "the default")


def show_keep(keep: Keep) -> str:
    """The policy as text, as `parse_keep` reads it."""
    parts = [
        *([] if keep.age is None else [_show_age(keep.age)]),
        *([] if keep.runs is None else [f"{keep.runs} run{'s' * (keep.runs != 1)}"]),
        *([] if keep.size is None else [show_bytes(keep.size)]),
    ]
    return ", ".join(parts) or EVERYTHING


def superfluous(runs: Iterable[EndedRun], keep: Keep, now: float, *, spared: float = 0.0) -> list[Superfluous]:
    """The runs that are not kept, oldest first.

    From the newest to the oldest, a run stays if it and those that stay are within all limits. One that ended in the
    last `spared` seconds always stays, but counts.
    """
    gone = []
    kept, size = 0, 0
    for run in sorted(runs, key=lambda r: (r.ended, r.run), reverse=True):
        why = None
        if now - run.ended >= spared:
            why = _why(run, keep, now, kept, size)
        if why is None:
            kept, size = kept + 1, size + run.size
        else:
            gone.append(Superfluous(run, why))
    return gone[::-1]


def _why(run: EndedRun, keep: Keep, now: float, kept: int, size: int) -> str | None:
    """The limit that a run would exceed beside the `kept` newer runs, which take `size` bytes."""
    if keep.age is not None and now - run.ended > keep.age:
        return f"older than {_show_age(keep.age)}"
    if keep.runs is not None and kept >= keep.runs:
        return f"beyond {keep.runs} run{'s' * (keep.runs != 1)}"
    if keep.size is not None and size + run.size > keep.size:
        return f"beyond {show_bytes(keep.size)}"
    return None


def _show_age(seconds: float) -> str:
    return show_duration(seconds, ("d", "h", "m"))
