"""`--set`: what it can override, and what is said when it names nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgectl.spec.hosts import LOCAL
from tests.unit.spec.spec_cases import problems, read

TEXT = """
hosts: [local, {name: b, gpus: none}]
actors:
  trainer:
    class: m:C
    procs: 8
    args: {lr: 1, optim: {name: adam, betas: [0.9, 0.99]}}
scripts:
  my.mesh: {run: train.py}
  sft: {run: train.py, env: {A: b}}
"""


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("actors.trainer.procs=4", "actors/trainer/procs", 4),
        ("actors.trainer.procs=${SIZE}", "actors/trainer/procs", 4),
        ("actors.trainer.class=n:D", "actors/trainer/class_", "n:D"),
        ("actors.trainer.args.lr=1e-4", "actors/trainer/args/lr", 1e-4),
        ("actors.trainer.args.new=[1, x]", "actors/trainer/args/new", [1, "x"]),
        ("actors.trainer.args.optim.betas.1=0.5", "actors/trainer/args/optim/betas", [0.9, 0.5]),
        ("actors.trainer.args={}", "actors/trainer/args", {}),
        ("actors.trainer.restart.max=3", "actors/trainer/restart/max", 3),
        ("scripts.sft.env.A=a=b", "scripts/sft/env", {"A": "a=b"}),
        ("scripts.sft.env.NEW=017", "scripts/sft/env", {"A": "b", "NEW": "017"}),
        ("scripts.my.mesh.procs=2", "scripts/my.mesh/procs", 2),
        ("scripts.sft={module: x}", "scripts/sft/program/kind", "module"),
        ("hosts.1.gpus=[0, 1]", "hosts/1/gpus", (0, 1)),
        ("hosts[1].gpus=auto", "hosts/1/gpus", "auto"),
        ("hosts=[local]", "hosts", (LOCAL,)),
        ("hosts.0={name: x, local: yes}", "hosts/0/name", "x"),
        ("hosts={file: good.txt}", "hosts/0/name", "gpu01"),
        ("env.X=", "env", {"X": ""}),
        ("name=3.10", "name", "3.10"),
        ("name=", "name", "spec"),
        ("lease=1m", "lease", 60),
        ("driver.run=main.py", "driver/program/kind", "file"),
        (" lease =2m", "lease", 120),
    ],
)
def test_what_can_be_overridden(tmp_path: Path, override: str, path: str, value: Any) -> None:
    (tmp_path / "good.txt").write_text("gpu01\n")
    found: Any = read(tmp_path, TEXT, override)
    for key in path.split("/"):
        if isinstance(found, dict):
            found = found[key]
        elif isinstance(found, (tuple, list)):
            found = found[int(key)]
        else:
            found = getattr(found, key)
    assert found == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert read(tmp_path, TEXT, "lease=1m", "lease=2m").lease == 120


def test_an_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    text = TEXT.replace("procs: 8", "procs: ${NOT_SET}")
    assert read(tmp_path, text, "actors.trainer.procs=2").actors["trainer"].procs == 2


def test_an_override_of_an_aliased_value_changes_one_use(tmp_path: Path) -> None:
    text = "env: &e {A: b}\nscripts:\n  x: {run: train.py, env: *e}\n"
    spec = read(tmp_path, text, "scripts.x.env.A=c")
    assert (spec.env, spec.scripts["x"].env) == ({"A": "b"}, {"A": "c"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actors.trainer.proc=4", "actors.trainer.proc: names nothing: actors.trainer knows no key 'proc'; did"),
        ("actors.trianer.procs=4", "actors.trianer.procs: names nothing: actors has no 'trianer'; did you mean 'tr"),
        ("actor.trainer.procs=4", "actor.trainer.procs: names nothing: the spec knows no key 'actor'; did you mean 'a"),
        ("scripts.new={run: train.py}", "scripts.new: names nothing: scripts has no 'new'"),
        ("services.x.procs=1", "services.x.procs: names nothing: services has no 'x'"),
        ("hosts.2=local", "hosts.2: names nothing: hosts is a list of 2, counted from 0; it has no '2'"),
        ("hosts.-1=local", "hosts.-1: names nothing: hosts is a list of 2, counted from 0; it has no '-1'"),
        ("hosts.0.gpus=none", "hosts.0.gpus: names nothing: hosts.0 is 'local', not a map"),
        ("lease.x=1", "lease.x: names nothing: lease is not a map"),
        ("actors.trainer.procs.x=1", "actors.trainer.procs.x: names nothing: actors.trainer.procs is '8', not a map"),
        ("actors.trainer.args.optim.nam=x", "actors.trainer.args.optim.nam: names nothing: actors.trainer.args.optim"),
        ("..=1", "..: names nothing: the spec knows no key ''"),
        (".".join("a" * 10_000) + "=1", "a.a"),
        ("lease", "lease: expected PATH=VALUE, such as actors.trainer.procs=4"),
        ("=1", "…: expected PATH=VALUE"),
        ("", "…: expected PATH=VALUE"),
        ("lease=[", "lease: not valid YAML: "),
        ("lease=1\n---\n2", "lease: a second document"),
        ("env=&a {x: *a}", "env.x: alias to 'a' inside itself: a cycle"),
        ("env.X=\udcff", "env.X: not UTF-8: byte 0xff"),
        ("env.X=\x1b", "env.X: character '\\x1b' is not allowed"),
        ("env={A: 1, A: 2}", "env.A: key used twice; the first is in the same value"),
        ("actors.trainer.procs=eight", "actors.trainer.procs: expected a whole number, got 'eight'"),
        ("actors.trainer={class: m:C, proc: 1}", "actors.trainer.proc: unknown key; did you mean 'procs'?"),
        ("env.RANK=1", "env.RANK: forgectl sets it for each rank"),
        ("env.X=${NOT_SET}", "env.X: variable NOT_SET is not set"),
        ("secrets=[NOT_SET]", "secrets.0: variable NOT_SET is not set in the launching environment"),
        ("scripts.sft.run=trian.py", "scripts.sft.run: no such file 'trian.py'"),
        ("workdir=nowhere", "workdir: 'nowhere': no such folder"),
        ("actors.trainer.hosts=3", ""),
    ],
)
def test_what_is_wrong_is_told_by_the_override(tmp_path: Path, override: str, message: str) -> None:
    lines = problems(tmp_path, TEXT, override)
    assert len(lines) == 1
    if message:
        assert lines[0].startswith(f"spec.yaml: --set {message}")
    else:  # what no longer fits may be told at the other value
        assert lines == ["spec.yaml:6:12: actors.trainer.procs: 8 does not spread evenly over 3 hosts; 6 would"]
    assert lines[0].isprintable()


def test_problems_of_the_file_and_of_overrides_are_told_together(tmp_path: Path) -> None:
    text = TEXT.replace("procs: 8", "proc: 8")
    lines = problems(tmp_path, text, "lease=never", "nope=1", "env=[", "scripts.sft.procs=0")
    assert [line.split(": ")[:2] for line in lines] == [
        ["spec.yaml", "--set nope"],
        ["spec.yaml", "--set env"],
        ["spec.yaml", "--set lease"],
        ["spec.yaml", "--set scripts.sft.procs"],
        ["spec.yaml:6:5", "actors.trainer.proc"],
    ]


def test_the_source_of_hosts_can_be_overridden_key_by_key(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    text = "hosts: {file: one.txt}\nscripts: {a: {run: train.py}}\n"
    (host,) = read(tmp_path, text, "hosts.file=two.txt", "hosts.python=/opt/python", "hosts.env={A: b}").hosts
    assert (host.name, host.python, host.env) == ("two", "/opt/python", {"A": "b"})
    (host,) = read(tmp_path, "scripts: {a: {run: train.py}}", "hosts.file=two.txt").hosts
    assert host.name == "two"
    lines = problems(tmp_path, text, "hosts.fil=x", "hosts.file=none.txt")
    assert lines[0] == "spec.yaml: --set hosts.fil: names nothing: hosts knows no key 'fil'; did you mean 'file'?"
    assert lines[1].startswith("spec.yaml: --set hosts.file: 'none.txt': no such file; looked for '/")
