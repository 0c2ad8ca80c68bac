"""Durations and moments as text: the units that users write, and what people and documents are shown."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Literal

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Unit of a duration → its seconds."""


def show_duration(seconds: float, units: Iterable[str] = ("h", "m")) -> str:
    """The duration in the first of these units of which it is a whole number, else in seconds: `10m`."""
    for unit in units:
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def timestamp(unix: float, timespec: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """Unix seconds as `2026-11-22T20:00:00Z`."""
    utc = datetime.datetime.fromtimestamp(unix, datetime.timezone.utc)
    return utc.isoformat(timespec=timespec).replace("+00:00", "Z")
