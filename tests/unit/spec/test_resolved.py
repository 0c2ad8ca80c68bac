"""A spec that was printed as it was understood is the same spec, wherever it is launched from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.cli.views.plan_view import plan_json
from forgectl.errors import UsageError
from forgectl.model.plan import Gpu, HostFacts
from forgectl.plan.placement import place
from forgectl.spec.load import load, parse
from forgectl.spec.model import Spec
from forgectl.spec.resolved import as_json, as_yaml, resolved
from tests.unit.spec.spec_cases import ENVIRON, read
from tests.unit.spec.test_json_schema import GOOD, SCHEMA, conforms

SAMPLES = sorted((Path(__file__).parents[3] / "sample_configs").glob("*.yaml"))
ELSEWHERE = Path("/")


def again(text: str) -> Spec:
    """What was printed, read in another folder, where no variable is set but secrets."""
    return parse(text.encode(), source="other.yaml", folder=ELSEWHERE, environ={"HF_TOKEN": "hf_secret"})


def content(spec: Spec) -> str:
    """All that a run depends on; as text, in which .nan equals itself."""
    return repr(spec.model_dump(exclude={"source", "folder"}))


def planned(spec: Spec) -> dict[str, Any]:
    """The plan, but for the name of the spec's file."""
    gpus = tuple(Gpu(str(i), f"GPU-{i}", "H200") for i in range(4))
    facts = {host.name: HostFacts(host.name, host.name, 8, gpus) for host in spec.all_hosts}
    return plan_json(place(spec, facts, python="/usr/bin/python3", inherited={})) | {"spec": ""}


@pytest.mark.parametrize("form", [as_yaml, as_json])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_gives_the_same_plan(sample: Path, form: Callable[[dict[str, Any]], str]) -> None:
    spec = load(sample, environ=ENVIRON)
    printed = again(form(resolved(spec)))
    assert content(printed) == content(spec)
    assert planned(printed) == planned(spec)


@pytest.mark.parametrize("text", GOOD)
def test_what_is_printed_is_the_same_spec_and_conforms_to_the_schema(tmp_path: Path, text: str) -> None:
    (tmp_path / "good.txt").write_text("gpu01 slots=8\n")
    spec = read(tmp_path, text)
    for form in (as_yaml, as_json):
        printed = form(resolved(spec))
        assert content(again(printed)) == content(spec)
        assert conforms(yaml.safe_load(printed), SCHEMA)


def test_defaults_variables_overrides_and_listed_hosts_are_filled_in(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("gpu01 slots=4\nu@gpu02\n")
    text = "hosts: {file: two.txt, gpus: 2}\nsecrets: [HF_TOKEN]\nenv: {WHO: '${HOME}', PRICE: $$5}\n"
    text += "scripts: {a: {run: train.py --n 3, procs: '${SIZE}'}}"
    spec = read(tmp_path, text, "scripts.a.restart.within=90s", "lease=36h", "log_limit=1536MiB")
    found = yaml.safe_load(as_yaml(resolved(spec)))
    assert found["hosts"] == [
        {"name": "gpu01", "local": False, "ssh": "gpu01", "gpus": 2, "slots": 4},
        {"name": "gpu02", "local": False, "ssh": "u@gpu02", "gpus": 2},
    ]
    assert found["env"] == {"WHO": "/home/u", "PRICE": "$$5"}
    assert found["secrets"] == ["HF_TOKEN"]
    assert (found["lease"], found["log_limit"], found["workdir"]) == ("36h", "1536MiB", str(tmp_path))
    assert found["scripts"]["a"] | {"preload": None} == {
        "run": ["train.py", "--n", "3"], "procs": 4, "with_gpus": False, "start_method": "fork",
        "restart": {"max": 0, "within": "90s", "backoff": "1s", "on": ["crash", "hang", "host_lost", "oom"]},
        "preload": None,
        "hang": {"after": "10m", "do": "report", "logs": False},
    }  # fmt: skip
    assert "hf_secret" not in as_yaml(resolved(spec)) + as_json(resolved(spec))


texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12) | st.sampled_from(
    ["1e5", "0o7", "yes", "~", "", "<<", "=", "-", "${A}", "$$", "1_0", "😀", "\u202e"]
)
values = st.recursive(
    texts | st.integers(-(10**12), 10**12) | st.floats(-1e300, 1e300) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.thorough
@settings(deadline=None)
@given(
    st.dictionaries(texts, values, max_size=3), st.dictionaries(st.from_regex(r"X[A-Z]{1,3}", fullmatch=True), texts)
)
def test_any_argument_and_any_variable_come_back(args: dict[str, object], env: dict[str, str]) -> None:
    spec = again("actors: {a: {class: m:C}}")
    mesh = spec.actors["a"].model_copy(update={"args": args, "env": env})
    spec = spec.model_copy(update={"actors": {"a": mesh}})
    for form in (as_yaml, as_json):
        printed = form(resolved(spec))
        assert all(character.isprintable() or character == "\n" or character > "\uffff" for character in printed)
        assert again(printed).actors["a"] == mesh


def test_what_json_has_no_word_for_is_refused(tmp_path: Path) -> None:
    spec = read(tmp_path, "actors: {a: {class: m:C, args: {x: .inf}}}")
    assert content(again(as_yaml(resolved(spec)))) == content(spec)
    with pytest.raises(UsageError, match="JSON has no word"):
        as_json(resolved(spec))
