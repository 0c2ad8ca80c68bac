"""Byte counts as text: the units that users write, and what people are shown."""

from __future__ import annotations

BYTES = {"b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in ((f"{letter}b", 1000), (f"{letter}ib", 1024))
}
"""Unit of a size, in small letters → its bytes."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_bytes(count: float) -> str:
    """Such as `1.5 GiB`: three digits, or four before the next unit."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
