"""The JSON Schema agrees with the loader about specs, good and bad.

No validator of JSON Schema is among the dependencies, so the few keywords that ours uses are checked here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgectl.spec.json_schema import json_schema
from tests.unit.spec.spec_cases import problems, read
from tests.unit.spec.test_spec import FULL, SFT

SCHEMA = json_schema()
_TYPES: dict[str, Any] = {
    "string": str,
    "object": dict,
    "array": list,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
_KEYWORDS = {
    *(
        "$ref",
        "$defs",
        "$schema",
        "title",
        "description",
        "default",
        "type",
        "enum",
        "allOf",
        "anyOf",
        "oneOf",
        "required",
    ),
    *("properties", "additionalProperties", "items", "minItems", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum"),
}


def conforms(value: Any, schema: Any) -> bool:
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not conforms(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]):
        return False
    if "type" in schema and not _has_type(value, schema["type"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if not all(conforms(value, option) for option in schema.get("allOf", ())):  # pydantic 2.8 writes it around $ref
        return False
    if "anyOf" in schema and not any(conforms(value, option) for option in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(conforms(value, option) for option in schema["oneOf"]) != 1:
        return False
    return _object(value, schema) and _array(value, schema) and _scalar(value, schema)


def _has_type(value: Any, types: str | list[str]) -> bool:
    names = [types] if isinstance(types, str) else types
    return any(isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)


def _object(value: Any, schema: dict[str, Any]) -> bool:
    if not isinstance(value, dict):
        return True
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    fits = all(conforms(item, known.get(key, rest)) for key, item in value.items())
    return fits and all(key in value for key in schema.get("required", ()))


def _array(value: Any, schema: dict[str, Any]) -> bool:
    if not isinstance(value, list):
        return True
    return len(value) >= schema.get("minItems", 0) and all(conforms(v, schema.get("items", True)) for v in value)


def _scalar(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, str):
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        above = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        return above and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
    return True


GOOD = [
    FULL,
    SFT,
    "scripts: {a: {run: train.py, share_gpus_with: b}, b: {run: train.py, with_gpus: true}}",
    "name: 3\nlease: 45\nlog_limit: 1 GiB\nscripts: {a: {module: 'x y', restart: {max: 1, within: 0.5, 'on': [oom]}}}",
    "hosts: [{ssh: a@b}, {local: true}, {name: x, gpus: 2}]\nscripts: {a: {command: [echo, 1], hosts: [x]}}",
    "env: {A: 1, B: yes, C: 1.5, D: }\nscripts: {a: {run: [train.py, --lr, 0.1], procs: '${SIZE}', hosts: 2}}\n"
    "hosts: [a, b]",
    "hosts: [{name: x, slots: 4}]\nsync: none\nsync_limit: 2GiB\nscripts: {a: {module: x}}",
    "hosts: {file: good.txt, python: /opt/python, gpus: 2, env: {A: 1}, slots: 2}\nscripts: {a: {module: x}}",
    "services: {s: {class: '${NONE:-m:C}', router: '${NONE:-session}', with_gpus: '${NONE:-no}', args: {x: [1]}}}",
    "scripts: {a: {run: train.py, hang: {after: 5m, start: 1h, do: restart, logs: true}}}",
    "'on': {failed: echo, ended: [echo, 1], timeout: 1m}\nscripts: {a: {run: train.py}}",
]
BAD = [
    "scripts: {a: {run: train.py, hang: 10m}}",
    "scripts: {a: {run: train.py, hang: {do: kill}}}",
    "scripts: {a: {run: train.py, share_gpus_with: [b]}, b: {run: train.py, with_gpus: true}}",
    "scripts: {a: {run: train.py, proc: 8}}",
    "scripts: {a: {run: train.py, procs: eight}}",
    "scripts: {a: {run: train.py, procs: 0}}",
    "scripts: {a: {run: train.py, module: x}}",
    "scripts: {a: {procs: 1}}",
    "scripts: {a: {run: []}}",
    "scripts: {a: {run: train.py, env: {A: [1]}}}",
    "scripts: {a: train.py}",
    "actors: {a: {args: {}}}",
    "actors: {a: {class: m.C}}",
    "actors: {a: {class: m:C, router: session}}",
    "services: {a: {class: m:C, router: any}}",
    "lease: soon\nscripts: {a: {run: train.py}}",
    "lease: 0.5\nscripts: {a: {run: train.py}}",
    "log_limit: 2 parsecs\nscripts: {a: {run: train.py}}",
    "hosts: local\nscripts: {a: {run: train.py}}",
    "hosts: [{name: a, gpus: most}]\nscripts: {a: {run: train.py}}",
    "hosts: {gpus: none}\nscripts: {a: {run: train.py}}",
    "hosts: {file: good.txt, slurm: true}\nscripts: {a: {run: train.py}}",
    "hosts: {file: good.txt, name: x}\nscripts: {a: {run: train.py}}",
    "hosts: [{name: a, slots: -1}]\nscripts: {a: {run: train.py}}",
    "sync: rsync\nscripts: {a: {run: train.py}}",
    "driver: {run: main.py, procs: 2}",
    "scripts: {a: {module: a, restart: {on: [crashes]}}}",
    "'on': {fails: echo}\nscripts: {a: {run: train.py}}",
    "'on': {failed: {run: echo}}\nscripts: {a: {run: train.py}}",
    "secrets: {A: b}\nscripts: {a: {run: train.py}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_specs_conform(tmp_path: Path, text: str) -> None:
    (tmp_path / "good.txt").write_text("gpu01 slots=8\n")
    read(tmp_path, text)
    assert conforms(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize("text", BAD)
def test_bad_specs_do_not(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)
    assert not conforms(yaml.safe_load(text), SCHEMA)


def test_it_is_a_json_schema_with_a_description_of_every_key() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(SCHEMA["properties"]) == {
        *("name", "workdir", "hosts", "env", "secrets", "lease", "log_limit", "sync", "sync_limit", "spares"),
        *("actors", "services", "scripts", "driver", "on_failure", "on"),
    }
    assert "class" in SCHEMA["$defs"]["Actor"]["properties"]
    assert SCHEMA["properties"]["hosts"]["anyOf"][1] == {"$ref": "#/$defs/HostSource"}
    schemas = [SCHEMA, *SCHEMA["$defs"].values(), SCHEMA["$defs"]["Host"]["anyOf"][1]]
    for schema in schemas:
        for key, value in schema.get("properties", {}).items():
            assert value.get("description"), key


def test_only_keywords_are_used_that_are_checked_here() -> None:
    def keywords(schema: Any) -> set[str]:
        if not isinstance(schema, dict):
            return set()
        found = set(schema)
        for key in ("properties", "$defs"):
            for value in schema.get(key, {}).values():
                found |= keywords(value)
        for value in [option for key in ("allOf", "anyOf", "oneOf") for option in schema.get(key, ())]:
            found |= keywords(value)
        return found | keywords(schema.get("items")) | keywords(schema.get("additionalProperties"))

    assert keywords(SCHEMA) <= _KEYWORDS
