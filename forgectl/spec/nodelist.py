"""Converts host names in Slurm's short form, `gpu[01-03,07]`, to names and back; reads its counts per host. Pure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from forgectl.spec.problems import show

_BRACKETS = r"\[[^\[\]]*\]"
_LIST = re.compile(rf"(?:[^\[\]]|{_BRACKETS})+")
_ELEMENT = re.compile(rf"(?:[^\[\],]|{_BRACKETS})+")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
_LAST_NUMBER = re.compile(r"(.*?)([0-9]{1,9})([^0-9]*)", re.DOTALL)


class NodelistError(ValueError):
    """A text is not a list of hosts, or of counts; the message says why."""


def expand(text: str, most: int) -> list[str]:
    """All names in their order; raises NodelistError if `text` is not a list, or has more than `most` names."""
    text = text.strip()
    if not _LIST.fullmatch(text) or any(not e for e in re.sub(_BRACKETS, "x", text).split(",")):
        raise NodelistError("is not a list such as gpu[01-03,07],login1")
    names: list[str] = []
    for element in _ELEMENT.findall(text):
        parts = [_numbers(inner) if inner else [literal] for inner, literal in _parts(element)]
        count = math.prod(map(len, parts))
        if len(names) + count > most:
            raise NodelistError(f"names more than {most} hosts")
        names += map("".join, itertools.product(*map(list, parts)))
    return names


def _parts(element: str) -> Iterator[tuple[str, str]]:
    for part in _PART.finditer(element):
        if part[1] is not None and not part[1].strip():
            raise NodelistError("has empty brackets")
        yield part[1] or "", part[2] or ""


@dataclass(frozen=True)
class _Numbers:
    """Ranges of numbers, each with the width of its first number; not written out, as they may be very long."""

    ranges: tuple[tuple[range, int], ...]

    def __len__(self) -> int:
        return sum(len(numbers) for numbers, _ in self.ranges)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{width}d}" for numbers, width in self.ranges for number in numbers)


def _numbers(inner: str) -> _Numbers:
    ranges = []
    for item in inner.split(","):
        match = _RANGE.fullmatch(item)
        if not match:
            raise NodelistError(f"has {show(f'[{inner}]')}, not a list of numbers and ranges such as [01-03,07]")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise NodelistError(f"has the range {item}, which runs backwards")
        ranges.append((range(int(first), int(last) + 1), len(first)))
    return _Numbers(tuple(ranges))


def counts(text: str, hosts: int, most: int) -> list[int]:
    """One count per host, each limited to `most`: `4(x2),2` is 4, 4, 2. Raises NodelistError."""
    found: list[int] = []
    for item in text.strip().split(","):
        match = _COUNT.fullmatch(item)
        if not match:
            raise NodelistError("is not a list of counts such as 4(x2),2")
        times = int(match[2] or 1)
        if times > hosts:
            raise NodelistError(f"has counts for more than {hosts} hosts")
        found += [min(int(match[1]), most)] * times
    if len(found) != hosts:
        raise NodelistError(f"has counts for {len(found)} hosts, but there are {hosts}")
    return found


def compress(names: Iterable[str]) -> str:
    """The short form of `names`, in their order. Neighbours that differ in their last number share brackets."""
    groups: list[_Group | str] = []
    for name in names:
        match = _LAST_NUMBER.fullmatch(name)
        last = groups[-1] if groups else name
        if not match:
            groups.append(name)
        elif isinstance(last, _Group) and last.frame == match.group(1, 3):
            last.add(match[2])
        else:
            groups.append(_Group(match.group(1, 3), [[match[2], match[2]]]))
    return ",".join(map(str, groups))


@dataclass
class _Group:
    """Names with the same text around their number, and the ranges of that number: first and last."""

    frame: tuple[str, ...]
    ranges: list[list[str]]

    def add(self, number: str) -> None:
        first, last = self.ranges[-1]
        if number == f"{int(last) + 1:0{len(first)}d}":
            self.ranges[-1][1] = number
        else:
            self.ranges.append([number, number])

    def __str__(self) -> str:
        before, after = self.frame
        items = [first if first == last else f"{first}-{last}" for first, last in self.ranges]
        alone = len(items) == 1 and "-" not in items[0]
        return f"{before}{items[0] if alone else '[' + ','.join(items) + ']'}{after}"
