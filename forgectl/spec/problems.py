"""Collects every problem of a spec, with its place, so that all are reported at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from forgectl import names
from forgectl.errors import SpecError, SpecProblem

MOST = 100  # problems that are reported one by one
_SHOWN = 60  # characters of a value that a message repeats
_KEY = 64  # characters of a key that a path repeats: enough for any valid name


@dataclass(frozen=True)
class Place:
    """The place of a value, counted from 1; line 0 with `override` is a `--set` on the command line."""

    line: int = 0
    column: int = 0
    override: bool = False


class CannotGoOn(Exception):
    """The spec cannot be read any further; the reason is already among the problems."""


def one_line(text: str) -> str:
    """`text` with line breaks, terminal escapes and all else that does not print written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(value: object) -> str:
    """A value of a spec as messages repeat it: quoted, on one line, not too long."""
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
    """`; did you mean 'procs'?`, or "" if no option is near."""
    near = nearest(word, options)
    return f"; did you mean {show(near)}?" if near else ""


@dataclass
class Problems:
    """The problems found so far.

    `places` gives the place of a dotted path once the spec has been read; `keys` gives that of the path's last key.
    `unreadable` has the paths of values that could not be filled in: problems with them are not reported.
    """

    places: dict[str, Place] = field(default_factory=dict)
    keys: dict[str, Place] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    found: list[SpecProblem] = field(default_factory=list)
    unreported: int = 0

    def add(
        self,
        where: str,
        message: str,
        *,
        place: Place | None = None,
        at_key: bool = False,
        near: tuple[str, Iterable[str]] | None = None,
    ) -> None:
        """Add one problem, with a value or `at_key`; `near` is a word and the options that it might have meant."""
        if where in self.unreadable:
            return
        if self.full:
            self.unreported += 1
            return
        if near:
            message += did_you_mean(*near)
        if place is None and at_key:
            place = self.keys.get(where)
        self.found.append(problem(where, message, place or find(where, self.places)))

    def stop(self, where: str, message: str, *, place: Place | None = None) -> NoReturn:
        """Add a problem after which it makes no sense to read on; raises CannotGoOn."""
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
        if self.unreported:
            problems.append(SpecProblem("", f"and {self.unreported} more problems"))
        raise SpecError(one_line(source), problems)


def find(where: str, places: dict[str, Place]) -> Place:
    """The place of the value at `where`, or of the nearest value around it that the spec has."""
    where = where.replace("[", ".").replace("]", "")
    while where not in places and where:
        where = where.rpartition(".")[0]
    return places.get(where, Place())


def problem(where: str, message: str, place: Place) -> SpecProblem:
    """One problem at its place; a value from the command line is named as the user typed it."""
    if place.override:
        where = f"--set {where}"
    return SpecProblem(one_line(where), one_line(message), place.line, place.column)


def quoted(text: str) -> str:
    """`text` as a double-quoted YAML scalar, for advice on what to write instead."""
    return json.dumps(text)
