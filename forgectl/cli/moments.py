"""Times as users write them: a time of day or date, or how long ago. Pure."""

from __future__ import annotations

import datetime
import re

from forgectl.errors import UsageError
from forgectl.system.times import SECONDS

_AGO = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|ms|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(d|h|ms|m|s)")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?")


def moment(option: str, text: str, now: float) -> float:
    """The unix time that `10m`, `1h30m` (ago), `03:00` (the last one) or `2026-11-22T03:00:00Z` means at `now`.

    A time without a zone is local. Raises UsageError, which names the option.
    """
    text = text.strip()
    if _AGO.fullmatch(text):
        return now - sum(float(amount) * SECONDS[unit] for amount, unit in _PART.findall(text))
    try:
        if _CLOCK.fullmatch(text):
            today = datetime.datetime.fromtimestamp(now)
            time = datetime.time.fromisoformat(text.zfill(len(text) + (text[1] == ":")))
            found = datetime.datetime.combine(today, time)
            return (found if found.timestamp() <= now else found - datetime.timedelta(days=1)).timestamp()
        return datetime.datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text)).timestamp()
    except (ValueError, OverflowError):
        examples = "10m or 1h30m (ago), 03:00, or 2026-11-22T03:00:00Z"
        raise UsageError(f"{option} {text!r} is no time", hint=f"write {examples}") from None
