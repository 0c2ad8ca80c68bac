"""A spec as it was understood, written as a spec again: defaults and variables filled in, overrides applied."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import yaml

from forgectl.errors import UsageError
from forgectl.spec.model import Spec
from forgectl.spec.read import escape, resolve

_EMPTY_BY_DEFAULT = ("env", "args", "secrets", "actors", "services", "scripts")


def resolved(spec: Spec) -> dict[str, Any]:
    """The spec as plain values. Launched from any folder they are the same run; of secrets they have the names."""
    body = spec.model_dump(by_alias=True, exclude={"name", "workdir", "source", "folder"})
    return {"name": spec.name, "workdir": escape(str(spec.workdir)), **_said(body, free=False)}


def as_yaml(document: dict[str, Any]) -> str:
    """The document as YAML that `load` reads back; nothing in it acts on a terminal."""
    text = _yaml(document, allow_unicode=True)
    return text if all(line.isprintable() for line in text.split("\n")) else _yaml(document, allow_unicode=False)


def as_json(document: dict[str, Any]) -> str:
    """The document as JSON, which `load` reads, too. Raises UsageError for numbers that JSON does not have."""
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UsageError(
            "the spec has an infinite number or .nan, for which JSON has no word", hint="-o yaml"
        ) from None
    return "".join(map(_escaped, text)) + "\n"


def _escaped(character: str) -> str:
    """Escape what acts on a terminal; not by ensure_ascii, as YAML takes the halves of an emoji for two characters."""
    harmless = character.isprintable() or character == "\n" or character > "\uffff"
    return character if harmless else f"\\u{ord(character):04x}"


def _said(value: Any, *, free: bool) -> Any:
    """The value without keys that say nothing, its texts escaped; `free`: it is of the user's own `args`."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, (list, tuple)):
        return [_said(item, free=free) for item in value]
    if not isinstance(value, dict):
        return value
    said = value if free else {k: v for k, v in value.items() if v is not None and (v or k not in _EMPTY_BY_DEFAULT)}
    return {key: _said(item, free=free or key == "args") for key, item in said.items()}


class _Dumper(yaml.SafeDumper):
    """Writes lists and maps of plain values on one line, and nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, _is_flat(sequence))

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, _is_flat(mapping.values()))


def _is_flat(items: Iterable[Any]) -> bool:
    return not any(isinstance(item, (dict, list)) for item in items)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """A text, in quotes if YAML 1.1, as of the dumper, or 1.2, as of `resolve`, would take it for something else."""
    try:
        other = not isinstance(resolve(value), str)
    except ValueError:
        other = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if other else None)


_Dumper.add_representer(str, _text)


def _yaml(document: dict[str, Any], *, allow_unicode: bool) -> str:
    text: str = yaml.dump(
        document,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=allow_unicode,
        width=float("inf"),
    )
    return text
