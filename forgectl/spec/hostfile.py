"""Reads a hostfile as DeepSpeed and MPI use it: one host per line, with its slots. Pure.

A spec may come from somebody else and name any file of the user as its hostfile: so no complaint repeats its content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from forgectl.model.plan import MAX_RANKS

_EQUALS = re.compile(r"\s*=\s*")
_NUMBER = re.compile(r"0*([0-9]{1,9})")
_MOST = ("max_slots", "max-slots")  # Open MPI's: how far ranks may exceed `slots`, which ours never do


@dataclass(frozen=True)
class HostLine:
    """A host of a hostfile: its line number, its ssh destination, and how many ranks it takes (None: not given)."""

    line: int
    destination: str
    slots: int | None = None


@dataclass(frozen=True)
class Complaint:
    """What is wrong with a line."""

    line: int
    message: str


class _Wrong(ValueError):
    """Why a line cannot be read."""


def read_hostfile(text: bytes) -> Iterator[HostLine | Complaint]:
    """The host, or the complaint, of each line that is not empty or a comment."""
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode().partition("#")[0].strip()
            if line:
                yield _entry(number, line)
        except UnicodeDecodeError:
            yield Complaint(number, "not UTF-8; save the file as UTF-8")
        except _Wrong as e:
            yield Complaint(number, str(e))


def _entry(number: int, line: str) -> HostLine:
    name, *rest = line.split(None, 1)
    name, given = _with_count(name)
    slots = [] if given is None else [given]
    most: int | None = None
    for place, word in enumerate(_EQUALS.sub("=", " ".join(rest)).split(), start=2):
        key, _, value = word.partition("=")
        if key == "slots":
            slots.append(_count("slots=", value))
        elif key in _MOST:
            most = _count("max_slots=", value)
        else:
            raise _Wrong(f"cannot read its word {place}; a line is NAME, NAME slots=N or NAME:N")
    if len(slots) > 1:
        raise _Wrong("gives the number of slots twice")
    count = slots[0] if slots else most
    if most is not None and count is not None and most < count:
        raise _Wrong(f"has more slots ({count}) than max_slots ({most})")
    return HostLine(number, name, count)


def _with_count(name: str) -> tuple[str, int | None]:
    """Split `name:N`, MPICH's form; None if there is no N."""
    before, colon, count = name.rpartition(":")
    if not colon or not before or ":" in before or "/" in before:
        return name, None
    return before, _count("NAME:", count)


def _count(after: str, text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if not match:
        raise _Wrong(f"expected a number after {after}")
    if int(match[1]) > MAX_RANKS:
        raise _Wrong(f"the number after {after} must be at most {MAX_RANKS}")
    return int(match[1])
