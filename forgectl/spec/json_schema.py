"""The JSON Schema of a spec file, for editors that complete and check."""

from __future__ import annotations

from typing import Any

from forgectl.spec.hosts import HostSource
from forgectl.spec.model import Document

_PROGRAMS = ("run", "module", "command")


def json_schema() -> dict[str, Any]:
    """A JSON Schema, draft 2020-12."""
    schema = _plain(Document.model_json_schema(by_alias=True))
    kinds = schema["$defs"]
    for kind in ("Script", "Driver"):
        kinds[kind]["oneOf"] = [{"required": [program]} for program in _PROGRAMS]
    host = kinds["Host"]
    del host["required"]  # a local host has a name, and one with an ssh destination gets it from there
    kinds["Host"] = {
        "anyOf": [{"type": "string", "description": "local, or an ssh destination"}, host],
        "description": host.pop("description"),
    }
    source = kinds["HostSource"] = _plain(HostSource.model_json_schema(by_alias=True))
    source["oneOf"] = [{"required": ["file"]}, {"required": ["slurm"]}]
    hosts = schema["properties"]["hosts"]
    listed = {key: hosts.pop(key) for key in ("type", "items")}
    hosts["anyOf"] = [listed, {"$ref": "#/$defs/HostSource"}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A spec of forgectl",
        **schema,
    }


def _plain(schema: Any) -> Any:
    """The schema without pydantic's additions: titles from field names, defaults in a form that no spec has."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema if part != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _plain(value) for key, value in schema.items() if not _is_noise(key, value)}
    if len(only := kept.get("anyOf", ())) == 1:
        kept = {**kept, **only[0]}
        del kept["anyOf"]
    return kept


def _is_noise(key: str, value: Any) -> bool:
    if key == "default":
        return value is None or isinstance(value, dict) or (value != [] and isinstance(value, list))
    return key == "title" and isinstance(value, str)
