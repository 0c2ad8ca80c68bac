"""Turns plain values into a model of the spec; wrong values are reported in plain words, and left out."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from forgectl.names import NAME
from forgectl.spec.hosts import Model
from forgectl.spec.problems import CannotGoOn, Problems, nearest, show, step
from forgectl.spec.shape import Keyed, at, keys

M = TypeVar("M", bound=Model)

_ROUNDS = 5
_EXPECTED = {
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "tuple_type": "a list",
}


def validated(
    model: type[M], data: dict[str, Any], problems: Problems, *, under: tuple[str, ...] = ()
) -> tuple[M, set[str]]:
    """`data`, found at the path `under`, as a `model` without its wrong values; and the paths of those.

    So the rest can be checked, too. Wrong values are removed from `data`. Raises CannotGoOn if too many are left.
    """
    broken: set[str] = set()
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(data), broken
        except ValidationError as e:
            errors = e.errors(include_url=False)
            for error in sorted(errors, key=lambda error: error["type"] != "extra_forbidden"):
                _report(error, (*under, *error["loc"]), problems, broken)
                broken.add(".".join((*under, _leave_out(data, error))))
    raise CannotGoOn


def _report(error: ErrorDetails, loc: tuple[int | str, ...], problems: Problems, broken: set[str]) -> None:
    kind, context = error["type"], error.get("ctx", {})
    where = ""
    for key in loc:
        parent, where = where, step(where, key)
    if kind == "extra_forbidden":
        _unknown_key(loc, parent, where, problems, broken)
    elif kind == "missing":
        if where not in broken:  # else it was misspelled
            problems.add(parent, f"{loc[-1]} is missing")
    elif kind == "spec":
        inner = step(where, context["at"]) if context["at"] else where
        problems.add(inner, context["message"])
    else:
        expected, given = _EXPECTED.get(kind), error["input"]
        advice = f"; write [{given}]" if expected == "a list" and _is_name(given) else ""
        message = f"expected {expected}, got {show(given)}{advice}" if expected else f"{show(given)} is not valid"
        problems.add(where, message)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _unknown_key(loc: tuple[int | str, ...], parent: str, where: str, problems: Problems, broken: set[str]) -> None:
    if problems.full:
        problems.unreported += 1
        return
    shape = at(loc[:-1])
    model = shape.mapped if isinstance(shape, Keyed) else shape
    meant = nearest(str(loc[-1]), keys(model)) if model else None
    problems.add(where, "unknown key" + (f"; did you mean {show(meant)}?" if meant else ""), at_key=True)
    if meant:
        broken.add(step(parent, meant))


def _leave_out(data: dict[str, Any], error: ErrorDetails) -> str:
    """Remove the wrong value from `data`, or add a missing one; returns the path of the change."""
    loc = error["loc"]
    holder: Any = data
    target: tuple[dict[str, Any], str, str] = (data, str(loc[0]), str(loc[0]))
    where = ""
    for i, key in enumerate(loc):
        where = step(where, key)
        if isinstance(holder, dict):
            target = (holder, str(key), where)
        elif isinstance(holder, list) and loc[0] == "hosts" and i == 1 and len(loc) == 2:
            holder[int(key)] = {"name": f"host-{key}", "local": True}
            return where
        try:
            holder = holder[key]
        except (KeyError, IndexError, TypeError):
            holder = None
    place, name, where = target
    if error["type"] == "missing":
        place[name] = f"host-{loc[-2]}" if name == "name" else "module:Class"
    else:
        place.pop(name, None)
    return where
