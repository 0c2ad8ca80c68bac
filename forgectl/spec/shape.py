"""The spec's known keys by path, derived from the models; for suggestions and overrides."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from forgectl.spec.hosts import Model, OrMapped
from forgectl.spec.model import Document


@dataclass(frozen=True)
class Keyed:
    """A map or list whose keys the user chooses. `free`: its values are plain, so that new keys may be added.

    `mapped` is the model of the map that may be written instead.
    """

    inner: type[Model] | None
    free: bool = False
    mapped: type[Model] | None = None


Shape = type[Model] | Keyed | None


@cache
def keys(model: type[Model]) -> Mapping[str, Shape]:
    """The keys of one model as a spec writes them → the shape of their values."""
    found = {field.alias or name: _shape(field.annotation) for name, field in model.model_fields.items()}
    for name, field in model.model_fields.items():
        shape, instead = found.get(name), [m.model for m in field.metadata if isinstance(m, OrMapped)]
        if instead and isinstance(shape, Keyed):
            found[name] = replace(shape, mapped=instead[0])
    return found


def _shape(annotation: Any) -> Shape:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _shape(arguments[0])
    models = [shape for shape in map(_shape, arguments) if isinstance(shape, type)]
    if origin in (dict, tuple):
        return Keyed(models[0] if models else None, free=origin is dict and not models)
    return models[0] if models else None


def under(shape: Shape, key: str) -> Shape:
    """The shape of the value at `key` of `shape`."""
    if isinstance(shape, Keyed):
        return shape.inner
    return keys(shape).get(key) if shape else None


def at(path: Sequence[object]) -> Shape:
    """The shape of the value at a path from the root."""
    shape: Shape = Document
    for key in path:
        shape = under(shape, str(key))
    return shape
