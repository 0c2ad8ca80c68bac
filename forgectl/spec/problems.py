"""Collects every problem of a spec, with its place, so that all are reported at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from forgectl import names
from forgectl.errors import SpecError, SpecProblem

MOST = 100  # problems that are told one by one
_SHOWN = 60  # characters of a value that a message repeats
_KEY = 64  # characters of a key that a path repeats: any name that is allowed


@dataclass(frozen=True)
class Place:
    """Where a value stands, counted from 1; line 0 with `override` is a `--set` on the command line."""

    line: int = 0
    column: int = 0
    override: bool = False


class CannotGoOn(Exception):
    """The spec cannot be read any further; why is among the problems already."""


def one_line(text: str) -> str:
    """`text` without line breaks, terminal escapes or anything else that does not print."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(value: object) -> str:
    """What stands in a spec, as a message repeats it: quoted, on one line, not too long."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "…"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "nothing" if value is None else show(str(value))


def step(where: str, key: object) -> str:
    """The dotted path of `key` under `where`."""
    name = str(key)
    if not name or len(name) > _KEY or not name.isprintable() or " " in name:
        name = show(name)
    return f"{where}.{name}" if where else name


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option that `word` was probably meant to be."""
    if len(word) > _KEY:
        return None
    folded = {option.casefold(): option for option in islice(options, 200)}
    near = names.nearest(word.casefold(), folded)
    return folded[near] if near else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`; did you mean 'procs'?`, or nothing where no option is near."""
    near = nearest(word, options)
    return f"; did you mean {show(near)}?" if near else ""


@dataclass
class Problems:
    """The problems found so far. `places` gives the place of a dotted path once the spec has been read.

    `unreadable` holds the paths of values that could not be filled in: what follows from that is not told.
    """

    places: dict[str, Place] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    found: list[SpecProblem] = field(default_factory=list)
    untold: int = 0

    def add(
        self,
        where: str,
        message: str,
        *,
        place: Place | None = None,
        near: tuple[str, Iterable[str]] | None = None,
    ) -> None:
        """Add one problem; `near` is a word and what it might have meant."""
        if where in self.unreadable:
            return
        if self.full:
            self.untold += 1
            return
        if near:
            message += did_you_mean(*near)
        self.found.append(problem(where, message, place or find(where, self.places)))

    def stop(self, where: str, message: str, *, place: Place | None = None) -> NoReturn:
        """Add one problem after which reading on makes no sense."""
        self.add(where, message, place=place)
        raise CannotGoOn

    @property
    def full(self) -> bool:
        return len(self.found) >= MOST

    def check(self, source: str) -> None:
        """Raise SpecError if anything was found."""
        if not self.found:
            return
        problems = sorted(dict.fromkeys(self.found), key=lambda p: (p.line, p.column))
        if self.untold:
            problems.append(SpecProblem("", f"and {self.untold} more problems"))
        raise SpecError(one_line(source), problems)


def find(where: str, places: dict[str, Place]) -> Place:
    """The place of `where`, or of the nearest thing around it that is written down."""
    where = where.replace("[", ".").replace("]", "")
    while where not in places and where:
        where = where.rpartition(".")[0]
    return places.get(where, Place())


def problem(where: str, message: str, place: Place) -> SpecProblem:
    """One problem at its place; what came from the command line is named as the user typed it."""
    if place.override:
        where = f"--set {where}"
    return SpecProblem(one_line(where), one_line(message), place.line, place.column)


def quoted(text: str) -> str:
    """`text` as a double-quoted YAML scalar, for advice on what to write instead."""
    return json.dumps(text)
