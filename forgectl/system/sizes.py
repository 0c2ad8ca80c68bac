"""Byte counts and durations as text for people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_bytes(count: float) -> str:
    """Such as `1.5 GiB`: three digits, or four before the next unit."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"


def show_duration(seconds: float) -> str:
    """The duration as a spec writes it: `10m`."""
    for size, unit in ((3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
