"""Parses YAML bytes into a tree of nodes with their places; refuses every trap of YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from forgectl.spec.problems import Place, Problems, show, step

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 10_000
MAX_SCALAR = 100_000  # characters; Linux limits each argument and variable of a program to 128 KiB
MAX_ALIASES = 100
MAX_EXPANDED = 10_000  # nodes that all aliases together may expand to

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_OF_LIBYAML = "maximum nesting depth"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Scalar:
    """A scalar as written; the schema decides what it means. `plain`: without quotes."""

    text: str
    plain: bool
    size: int = 1


@dataclass(frozen=True)
class Sequence:
    items: tuple[Item, ...]
    size: int = 1


@dataclass(frozen=True)
class Mapping:
    """`size` counts the nodes in it, with aliases expanded."""

    entries: dict[str, Item]
    size: int = 1


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True)
class Item:
    """A node where it is used."""

    node: Node
    place: Place  # of the value; of the key, if that is on an earlier line
    key: Place | None = None
    plain_key: bool = False


def compose(data: bytes, problems: Problems, *, override: str | None = None) -> Item | None:
    """The tree of one YAML document, None for an empty one. `override` is the path of a `--set`.

    Adds what is wrong to `problems`; raises CannotGoOn if the rest cannot be understood.
    """
    text = _decode(data, problems, override)
    builder = _Builder(text, problems, override)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as e:
        place = builder.place(e.problem_mark or e.context_mark)
        if _OF_LIBYAML in (e.problem or ""):  # newer ones have such a limit, and read ahead of what we count
            problems.stop("", _TOO_DEEP, place=place)
        problems.stop(override or "", f"not valid YAML: {_reason(e, text)}", place=place)
    except (yaml.YAMLError, ValueError, OverflowError) as e:  # not only YAMLError, without libyaml
        problems.stop(override or "", f"not valid YAML: {show(str(e))}", place=builder.place(None))


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    words = ", ".join(part for part in (error.context, error.problem) if part)
    lines = text.splitlines()
    mark = error.problem_mark
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{words}; indent with spaces, not tabs"
    if "${" in line and "{" in line.replace("${", ""):
        return f"{words}; inside {{…}} a value with ${{…}} needs quotes"
    if error.problem == "mapping values are not allowed in this context":
        return f"{words}; is the line indented as its neighbors, or does a value with ': ' lack quotes?"
    return words


def _decode(data: bytes, problems: Problems, override: str | None) -> str:
    where = override or ""
    if len(data) > MAX_BYTES:
        problems.stop(where, "larger than 1 MiB; a spec is far smaller", place=_spot("", override))
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        place = _spot(data[: e.start].decode(), override)
        problems.stop(where, f"not UTF-8: byte 0x{data[e.start]:02x}; save the file as UTF-8", place=place)
    if bad := _FORBIDDEN.search(text):
        message = f"character {show(bad[0])} is not allowed in YAML; write it as an escape in double quotes"
        problems.stop(where, message, place=_spot(text[: bad.start()], override))
    return text


def _spot(before: str, override: str | None) -> Place:
    """The place right after the text `before`."""
    if override is not None:
        return Place(override=True)
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", before)
    return Place(len(lines), len(lines[-1]) + 1)


class _Builder:
    """Builds the tree from YAML's events, so that limits are checked before anything is built."""

    def __init__(self, text: str, problems: Problems, override: str | None) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.problems = problems
        self.override = override
        self.anchors: dict[str, Node | None] = {}  # None while the anchored node is still open
        self.nodes = self.aliases = self.expanded = self.depth = 0

    def place(self, mark: Any) -> Place:
        if self.override is not None:
            return Place(override=True)
        return Place(mark.line + 1, mark.column + 1) if mark else Place()

    def document(self) -> Item | None:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        event = next(self.events)
        item = Item(self.node(event, self.override or ""), self.place(event.start_mark))
        next(self.events)  # the document's end
        if not isinstance(event := next(self.events), yaml.StreamEndEvent):
            message = "a second document; a spec is one document, without '---' in between"
            self.problems.stop(self.override or "", message, place=self.place(event.start_mark))
        return item

    def node(self, event: Any, where: str) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, where)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.problems.stop("", f"more than {MAX_NODES} values", place=self.place(event.start_mark))
        if event.tag is not None:
            message = f"tags are not supported; remove {show(event.tag.replace('tag:yaml.org,2002:', '!!'))}"
            self.problems.add(where, message, place=self.place(event.start_mark))
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node = self.untagged(event, where)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def untagged(self, event: Any, where: str) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            if _SURROGATE.search(event.value):  # libyaml refuses these, PyYAML does not
                self.problems.stop(where, "half of a surrogate pair", place=self.place(event.start_mark))
            if len(event.value) > MAX_SCALAR:
                message = f"a text of over {MAX_SCALAR} characters; put it in a file and name that"
                self.problems.stop(where, message, place=self.place(event.start_mark))
            return Scalar(event.value, plain=not event.style)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.problems.stop("", _TOO_DEEP, place=self.place(event.start_mark))
        node = self.sequence(where) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(where)
        self.depth -= 1
        return node

    def alias(self, event: Any, where: str) -> Node:
        place = self.place(event.start_mark)
        name = show(event.anchor)
        if event.anchor not in self.anchors:
            self.problems.stop(where, f"alias to {name}, which no anchor defines before it", place=place)
        node = self.anchors[event.anchor]
        if node is None:
            self.problems.stop(where, f"alias to {name} inside itself: a cycle", place=place)
        self.aliases += 1
        self.expanded += node.size
        if self.aliases > MAX_ALIASES:
            self.problems.stop(where, f"more than {MAX_ALIASES} aliases", place=place)
        if self.expanded > MAX_EXPANDED:
            self.problems.stop(where, f"aliases that expand to over {MAX_EXPANDED} values", place=place)
        return node

    def sequence(self, where: str) -> Sequence:
        items: list[Item] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            node = self.node(event, step(where, len(items)))
            items.append(Item(node, self.place(event.start_mark)))
        return Sequence(tuple(items), 1 + sum(item.node.size for item in items))

    def mapping(self, where: str) -> Mapping:
        entries: dict[str, Item] = {}
        keys: dict[str, Place] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_place = self.place(event.start_mark)
            key = self.node(event, where)
            name = key.text if isinstance(key, Scalar) else ""
            value_event = next(self.events)
            place = self.place(value_event.start_mark)
            if place.line != key_place.line:
                place = key_place
            node = self.node(value_event, step(where, name))
            if complaint := _bad_key(key, keys):
                where_key = step(where, name) if isinstance(key, Scalar) else where
                self.problems.add(where_key, complaint, place=key_place)
                if name == "<<":
                    self.problems.unreadable.add(where)  # a missing key may be in the merged map
                continue
            keys[name] = key_place
            entries[name] = Item(node, place, key_place, plain_key=isinstance(key, Scalar) and key.plain)
        return Mapping(entries, 1 + sum(1 + item.node.size for item in entries.values()))


def _bad_key(key: Node, keys: dict[str, Place]) -> str | None:
    if not isinstance(key, Scalar):
        return "a key must be text, not a list or a map"
    if key.text == "<<" and key.plain:
        return "merge keys (<<) are not supported; write the values out, or alias a whole map"
    if first := keys.get(key.text):
        place = f" on line {first.line}, column {first.column}" if first.line else ""
        return f"key used twice; the first is{place or ' in the same value'}"
    return None
