"""Byte counts as text for people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_bytes(count: float) -> str:
    """Such as `1.5 GiB`: three digits, or four before the next unit."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
