"""`--set a.b.c=YAML`: values from the command line, put into the tree before it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from forgectl.spec.document import Item, Mapping, Node, Scalar, Sequence, compose
from forgectl.spec.model import Document
from forgectl.spec.problems import CannotGoOn, Place, Problems, did_you_mean, show, step
from forgectl.spec.shape import Keyed, Shape, keys, under

_SET = Place(override=True)
_ROOT = "the spec"
_MAX_INDEX = 6  # digits
_MAX_PARTS = 50


class _NamesNothing(Exception):
    """An override's path names nothing in the spec; the message says why."""


def apply(root: Item, overrides: SequenceOf[str], problems: Problems) -> Item:
    """The tree with all overrides applied; those that name nothing are added to `problems`."""
    for override in overrides:
        path, equals, text = override.partition("=")
        path = re.sub(r"\[(\d+)\]", r".\1", path.strip())
        if not equals or not path:
            problems.add(path or "…", "expected PATH=VALUE, such as actors.trainer.procs=4", place=_SET)
            continue
        try:
            value = _value(path, text, problems)
            root = _assign(root, path.split("."), Document, value, _ROOT)
        except CannotGoOn:
            continue
        except _NamesNothing as e:
            problems.add(path, f"names nothing: {e}", place=_SET)
    return root


def keys_under(root: Item, path: str) -> dict[str, bool]:
    """The keys that an override may name under a path of the spec ("" for all of it) → whether more may follow."""
    item: Item | None = root
    shape: Shape = Document
    parts = path.split(".") if path else []
    while parts:
        item, shape, parts = _step(item, shape, parts)
    node = item.node if item else None
    shape = _mapped(shape, node)
    found: dict[str, bool] = {}
    if isinstance(node, Sequence):
        found = {str(i): _has_keys(child, None) for i, child in enumerate(node.items)}
    elif isinstance(node, Mapping):
        found = {key: _has_keys(child, under(shape, key)) for key, child in node.entries.items()}
    known = keys(shape) if isinstance(shape, type) else {}
    return found | {key: _has_keys(None, below) for key, below in known.items() if key not in found}


def _step(item: Item | None, shape: Shape, parts: list[str]) -> tuple[Item | None, Shape, list[str]]:
    """What is at the next key of a path, and the rest of the path."""
    node = item.node if item else None
    shape = _mapped(shape, node)
    key, rest = _split(node, parts) if isinstance(node, Mapping) else (parts[0], parts[1:])
    child = None
    if isinstance(node, Mapping):
        child = node.entries.get(key)
    elif isinstance(node, Sequence) and key.isdecimal() and int(key[:_MAX_INDEX]) < len(node.items):
        child = node.items[int(key[:_MAX_INDEX])]
    return child, under(shape, key), rest


def _mapped(shape: Shape, node: Node | None) -> Shape:
    return shape.mapped if isinstance(shape, Keyed) and shape.mapped and isinstance(node, Mapping) else shape


def _has_keys(item: Item | None, shape: Shape) -> bool:
    """Whether a value is, or a missing one may be, a map or a list whose parts an override can name."""
    if item and (isinstance(item.node, (Mapping, Sequence)) or item.node.text):
        return not isinstance(item.node, Scalar)
    return isinstance(shape, type) or (isinstance(shape, Keyed) and shape.free)


def _value(path: str, text: str, problems: Problems) -> Item:
    data = text.encode(errors="surrogateescape")
    return compose(data, problems, override=path) or Item(Scalar("", plain=True), _SET)


def _assign(item: Item, parts: list[str], shape: Shape, value: Item, here: str) -> Item:
    """`item` with `value` at the path `parts`; `here` is the path of `item`."""
    if not parts:
        return value
    if len(parts) > _MAX_PARTS:
        raise _NamesNothing(f"no path has {len(parts)} parts")
    node = item.node
    if isinstance(node, Scalar) and node.plain and not node.text and not isinstance(shape, Keyed):
        node = Mapping({}) if shape else node
    if isinstance(node, Sequence):
        return replace(item, node=_assign_index(node, parts, shape, value, here))
    if not isinstance(node, Mapping):
        raise _NamesNothing(f"{here} is {show(node.text)}, not a map")
    shape = _mapped(shape, node)
    key, rest = _split(node, parts)
    if key not in node.entries:
        _new_key(node, key, rest, shape, here)
    missing = Item(Mapping({}) if rest else Scalar("", plain=True), _SET)
    child = _assign(node.entries.get(key, missing), rest, under(shape, key), value, _here(here, key))
    return replace(item, node=replace(node, entries={**node.entries, key: child}))


def _here(here: str, key: str) -> str:
    return step("" if here == _ROOT else here, key)


def _assign_index(node: Sequence, parts: list[str], shape: Shape, value: Item, here: str) -> Sequence:
    index = int(parts[0]) if parts[0].isdecimal() and len(parts[0]) <= _MAX_INDEX else -1
    if not 0 <= index < len(node.items):
        raise _NamesNothing(f"{here} is a list of {len(node.items)}, counted from 0; it has no {show(parts[0])}")
    child = _assign(node.items[index], parts[1:], under(shape, parts[0]), value, _here(here, parts[0]))
    return replace(node, items=(*node.items[:index], child, *node.items[index + 1 :]))


def _split(node: Mapping, parts: list[str]) -> tuple[str, list[str]]:
    """The next key of a path, and the rest. Names may contain dots, so it is the longest key that exists."""
    for length in range(len(parts), 0, -1):
        if (key := ".".join(parts[:length])) in node.entries:
            return key, parts[length:]
    return parts[0], parts[1:]


def _new_key(node: Mapping, key: str, rest: list[str], shape: Shape, here: str) -> None:
    """Raise _NamesNothing unless `key` may be added to `node`: a known field, a variable, an argument."""
    if isinstance(shape, type):
        known = keys(shape)
        if key in known and (not rest or known[key] is not None):
            return
        if key in known:
            raise _NamesNothing(f"{key} is not a map")
        raise _NamesNothing(f"{here} knows no key {show(key)}{did_you_mean(key, known)}")
    if isinstance(shape, Keyed) and shape.free and not rest and key:
        return
    raise _NamesNothing(f"{here} has no {show(key)}{did_you_mean(key, node.entries)}")
