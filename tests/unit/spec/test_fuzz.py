"""Whatever the bytes, reading them as a spec gives a spec or a SpecError with places."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgectl.errors import SpecError
from forgectl.spec.load import parse
from forgectl.spec.model import Spec
from forgectl.spec.resolved import as_yaml, resolved
from tests.unit.spec.spec_cases import ENVIRON, SOURCE, make_folder

KEYS = [
    *("name", "workdir", "hosts", "env", "secrets", "lease", "log_limit", "actors", "services", "scripts", "driver"),
    *("class", "args", "procs", "with_gpus", "restart", "max", "within", "on", "start_method", "python", "preload"),
    *(
        "share_gpus_with",
        "hang",
        "after",
        "do",
        "file",
        "slurm",
        "slots",
        "sync",
        "sync_limit",
        "num_replicas",
        "router",
        "run",
        "module",
        "command",
        "local",
        "ssh",
        "address",
        "gpus",
        "a",
        "b",
    ),
]
WORDS = [
    *("train.py", "main.py", "local", "gpu01", "auto", "none", "m:C", "true", "no", "1", "2", "-1", "0", "017", "10m"),
    *("2GiB", "${SIZE}", "${NOPE}", "$$", "${", "HF_TOKEN", "RANK", "A", "~", "", "x y", "'", "\x1b[0m"),
    *("hosts.txt", "content", "fork", "session", "driver", "a.0", "nowhere", "..", "-x", "é", "9" * 40),
]
TOKENS = [
    *(f"{key}: " for key in KEYS),
    *(*"\n,[]{}&*!|>-?:#'\"%@`", "\n  ", "\n    ", "- ", "&a ", "*a ", "<<: ", "--- ", "...", "!!str ", "\t", "? "),
    *WORDS,
]

texts = st.sampled_from(WORDS) | st.text(max_size=8)
scalars = texts | st.integers() | st.booleans() | st.none() | st.floats()
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=5),
    max_leaves=12,
)
names = st.sampled_from(["a", "b", "a.0", "driver", "x y"])
meshes = st.dictionaries(names, st.dictionaries(st.sampled_from(KEYS), values, max_size=6) | values, max_size=3)
sections = ["hosts", "env", "secrets", "lease", "log_limit", "sync", "sync_limit", "name", "workdir", "driver", "nope"]
specs = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(["actors", "services", "scripts"], meshes) | dict.fromkeys(sections, values),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield make_folder(Path(name))


def accepts_or_explains(folder: Path, text: bytes, *overrides: str) -> None:
    try:
        spec = parse(text, source=SOURCE, folder=folder, overrides=overrides, environ=ENVIRON)
    except SpecError as e:
        found = e.problems
    else:
        assert isinstance(spec, Spec)
        printed = as_yaml(resolved(spec)).encode()
        again = parse(printed, source=SOURCE, folder=Path("/"), environ=ENVIRON, name=spec.name)
        assert repr(again.model_dump(exclude={"folder"})) == repr(spec.model_dump(exclude={"folder"}))
        assert spec.actors or spec.services or spec.scripts or spec.driver
        return
    assert found
    for problem in found:
        line = problem.render(SOURCE)
        assert line.isprintable() and len(line) < 20_000
        assert problem.line > 0 < problem.column or problem.where.startswith("--set ") or "more problems" in line


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_bytes(folder: Path, data: bytes) -> None:
    accepts_or_explains(folder, data)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_texts(folder: Path, text: str) -> None:
    accepts_or_explains(folder, text.encode(errors="surrogatepass"))


@pytest.mark.thorough
@given(st.lists(st.sampled_from(TOKENS), max_size=40))
@settings(deadline=None, max_examples=300)
def test_scraps_of_yaml(folder: Path, tokens: list[str]) -> None:
    accepts_or_explains(folder, "".join(tokens).encode())


@pytest.mark.thorough
@given(specs)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_structures(folder: Path, spec: dict[str, Any]) -> None:
    accepts_or_explains(folder, json.dumps(spec).encode())


@pytest.mark.thorough
@given(st.lists(st.lists(st.sampled_from([*KEYS, "0", "1", ""]), max_size=4), max_size=3), values)
@settings(deadline=None, max_examples=200)
def test_overrides(folder: Path, paths: list[list[str]], value: Any) -> None:
    text = b"hosts: [local]\nscripts:\n  a: {run: train.py, env: {A: b}}\nactors:\n  b: {class: m:C, args: {a: [1]}}\n"
    accepts_or_explains(folder, text, *(f"{'.'.join(path)}={json.dumps(value)}" for path in paths))
