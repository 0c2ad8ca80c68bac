"""What a spec's values become, and what the defaults are."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import forgectl
from forgectl.errors import NotFoundError, SpecError
from forgectl.model.plan import Program
from forgectl.names import DEFAULT_SPECS
from forgectl.spec.load import load
from forgectl.spec.model import Host, Restart
from forgectl.spec.read import escape
from tests.unit.spec.spec_cases import problems, read

SFT = "scripts:\n  sft:\n    run: train.py --steps 10\n"
FULL = """
name: grpo
workdir: .
hosts:
  - local
  - gpu01
  - name: gpu02
    ssh: ubuntu@10.0.0.5
    address: 10.1.0.5
    python: /opt/venv/bin/python
    gpus: auto
    env: {NCCL_SOCKET_IFNAME: ib0}
  - {name: sim1, local: true}
env: {HF_HOME: /data/hf}
secrets: [HF_TOKEN]
lease: 30s
actors:
  trainer:
    class: actors.trainer:Trainer
    procs: 8
    hosts: 2
    with_gpus: true
    args: {lr: 3.0e-4}
    env: {}
    restart: {max: 3, within: 10m}
    start_method: fork
    python: /opt/vllm/bin/python
    preload: [torch]
services:
  policy:
    class: actors.generator:Generator
    procs: 2
    num_replicas: 4
    with_gpus: true
    router: round_robin
scripts:
  sft:
    run: train.py --steps 10
    procs: 8
    with_gpus: true
driver:
  run: main.py
"""


def test_a_full_spec(tmp_path: Path) -> None:
    spec = read(tmp_path, FULL)
    assert (spec.name, spec.source, spec.folder, spec.workdir) == ("grpo", "spec.yaml", tmp_path, tmp_path)
    assert [host.name for host in spec.hosts] == ["local", "gpu01", "gpu02", "sim1"]
    assert [host.ssh for host in spec.hosts] == [None, "gpu01", "ubuntu@10.0.0.5", None]
    assert [host.local for host in spec.hosts] == [True, False, False, True]
    assert spec.hosts[2].env == {"NCCL_SOCKET_IFNAME": "ib0"}
    trainer, policy, sft = spec.actors["trainer"], spec.services["policy"], spec.scripts["sft"]
    assert (trainer.procs, trainer.hosts, trainer.with_gpus) == (8, 2, True)
    assert (trainer.args, trainer.restart) == ({"lr": 3.0e-4}, Restart(max=3, within=600.0))
    assert trainer.program == Program("actor", "actors.trainer:Trainer")
    assert (policy.num_replicas, policy.router) == (4, "round_robin")
    assert sft.program == Program("file", "train.py", ("--steps", "10"))
    assert spec.driver and spec.driver.program == Program("file", "main.py")
    assert (spec.secrets, spec.lease) == (("HF_TOKEN",), 30.0)


def test_the_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, SFT)
    assert spec.hosts == (Host(name="local", local=True),)
    assert (spec.name, spec.lease, spec.log_limit) == ("spec", 30.0, 2 << 30)
    assert (spec.env, spec.secrets, spec.actors, spec.services, spec.driver) == ({}, (), {}, {}, None)
    sft = spec.scripts["sft"]
    assert (sft.procs, sft.hosts, sft.with_gpus, sft.env) == (1, None, False, {})
    assert (sft.restart.max, sft.restart.within, sft.start_method) == (0, None, "fork")
    assert (sft.python, sft.preload) == (None, ("torch?",))


def test_a_spec_cannot_be_changed(tmp_path: Path) -> None:
    spec = read(tmp_path, SFT)
    with pytest.raises(ValueError, match="frozen"):
        spec.scripts["sft"].procs = 2


def test_environments_take_texts_as_they_are_written(tmp_path: Path) -> None:
    written = "{A: 017, B: NO, C: 3.10, D: 22:22, E: , F: null, G: ~, H: 'x', I: 1e3, J: 2026-11-22, K: 0x1F}"
    env = read(tmp_path, f"env: {written}\n{SFT}").env
    values = ("017", "NO", "3.10", "22:22", "", "null", "~", "x", "1e3", "2026-11-22", "0x1F")
    assert tuple(env.values()) == values


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "'true'"])
def test_words_for_true(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, f"{SFT}    with_gpus: {word}\n").scripts["sft"].with_gpus is True


def test_names_are_texts(tmp_path: Path) -> None:
    spec = read(tmp_path, "name: 3.10\nscripts:\n  017: {run: train.py}\n  1.10: {run: train.py}\n")
    assert (spec.name, list(spec.scripts)) == ("3.10", ["017", "1.10"])


def test_arguments_are_read_by_the_core_rules_of_yaml_12(tmp_path: Path) -> None:
    args = """
      a: 3.0e-4
      b: 1e-4
      c: 017
      d: 22:22
      e: yes
      f: true
      g: ~
      h: 0o17
      i: 0x1F
      j: '5'
      k: 1_000
      l: [.5, -.inf, -7, {x: off}]
      m: 2026-11-22
      n: ${SIZE}
      o: "${SIZE}"
      p:
      q: 5.
    """
    read_args = read(tmp_path, f"actors:\n  a:\n    class: m:C\n    args:{args}").actors["a"].args
    first = {"a": 3.0e-4, "b": 1e-4, "c": 17, "d": "22:22", "e": "yes", "f": True, "g": None, "h": 15}
    second = {"i": 31, "j": "5", "k": "1_000", "l": [0.5, -math.inf, -7, {"x": "off"}], "m": "2026-11-22"}
    third = {"n": 4, "o": "4", "p": None, "q": 5.0}
    assert read_args == first | second | third
    assert type(read_args["c"]) is int and type(read_args["q"]) is float and type(read_args["j"]) is str


@pytest.mark.parametrize(
    ("written", "seconds"), [("500ms", 0.5), ("30", 30), ("1.5m", 90), ("1h", 3600), ("2 d", 172800)]
)
def test_durations(tmp_path: Path, written: str, seconds: float) -> None:
    spec = read(tmp_path, f"{SFT}    restart: {{max: 1, within: {written}, on: [oom, crash]}}\n")
    assert spec.scripts["sft"].restart.on == ("crash", "oom")
    assert spec.scripts["sft"].restart.within == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [("2GiB", 2 << 30), ("500MB", 500_000_000), ("4096", 4096), ("4.5 kib", 4608), ("64kB", 64_000)],
)
def test_sizes(tmp_path: Path, written: str, size: int) -> None:
    assert read(tmp_path, f"log_limit: {written}\n{SFT}").log_limit == size


@pytest.mark.parametrize(
    ("written", "program"),
    [
        ("module: 'pkg.train --name ''a b'''", Program("module", "pkg.train", ("--name", "a b"))),
        ("command: [bash, -c, '$$A $A', 10, ~, '']", Program("command", "bash", ("-c", "$A $A", "10", "~", ""))),
        ("command: \"sh -c 'exit 3'\"", Program("command", "sh", ("-c", "exit 3"))),
    ],
)
def test_programs(tmp_path: Path, written: str, program: Program) -> None:
    script = read(tmp_path, f"scripts:\n  a:\n    {written}\n").scripts["a"]
    assert script.program == program
    assert script.preload == (() if program.kind == "command" else ("torch?",))


def test_a_command_may_preload(tmp_path: Path) -> None:
    script = read(tmp_path, "scripts: {a: {command: x, preload: [numpy.linalg]}}").scripts["a"]
    assert script.preload == ("numpy.linalg",)


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("local", Host(name="local", local=True)),
        ("gpu01", Host(name="gpu01", ssh="gpu01")),
        ("root@10.0.0.5", Host(name="10.0.0.5", ssh="root@10.0.0.5")),
        ("{ssh: me@gpu01}", Host(name="gpu01", ssh="me@gpu01")),
        ("{name: gpu01}", Host(name="gpu01", ssh="gpu01")),
        ("{name: gpu01, local: no}", Host(name="gpu01", ssh="gpu01")),
        ("{local: true}", Host(name="local", local=True)),
        ("{name: local, gpus: [1, 0]}", Host(name="local", local=True, gpus=(1, 0))),
        ("{name: sim, local: yes, gpus: 4}", Host(name="sim", local=True, gpus=4)),
        ("{name: a, ssh: 'ssh://root@gpu:22', gpus: none}", Host(name="a", ssh="ssh://root@gpu:22", gpus="none")),
    ],
)
def test_hosts(tmp_path: Path, written: str, host: Host) -> None:
    assert read(tmp_path, f"hosts: [{written}]\n{SFT}").hosts == (host,)


def test_the_hosts_of_a_mesh_are_a_number_or_names(tmp_path: Path) -> None:
    text = "hosts: [a, '2']\nscripts:\n  x: {run: train.py, procs: 4, hosts: '2'}\n"
    spec = read(tmp_path, text + "  y: {run: train.py, procs: 4, hosts: ['2', a]}\n")
    assert (spec.scripts["x"].hosts, spec.scripts["y"].hosts) == (2, ("2", "a"))


def test_variables_are_filled_in(tmp_path: Path) -> None:
    text = (
        "name: a-${SIZE}-${NONE:-b}-${EMPTY:-c}-${SIZE:-d}\nscripts:\n  sft:\n    run: ${NONE:-train.py} '$${X}' $Y"
        "\n    procs: ${SIZE}\n    env: {E: '${EMPTY}', L: '${SIZE}$$${SIZE}', '${SIZE}': x}\n"
    )
    # a key is never filled in, so the last one is not the name of a variable
    assert problems(tmp_path, text) == [
        "spec.yaml:6:49: scripts.sft.env.${SIZE}: '${SIZE}' is not the name of a variable: "
        "letters, digits and '_', the first not a digit"
    ]
    spec = read(tmp_path, text.replace(", '${SIZE}': x", ""))
    sft = spec.scripts["sft"]
    assert (spec.name, sft.procs, sft.env) == ("a-4-b-c-4", 4, {"E": "", "L": "4$4"})
    assert sft.program.args == ("${X}", "$Y")


def test_what_is_filled_in_is_not_read_again(tmp_path: Path) -> None:
    spec = read(tmp_path, "env: {A: '${X}'}\n" + SFT, environ={"X": "${Y} $$ {a: b}\nc"})
    assert spec.env == {"A": "${Y} $$ {a: b}\nc"}


def test_a_secret_is_never_filled_in(tmp_path: Path) -> None:
    for secrets in ("[HF_TOKEN]", "['${NONE:-HF}_TOKEN']"):
        for text in (f"secrets: {secrets}\n{SFT}", f"{SFT}secrets: {secrets}\n"):
            lines = problems(tmp_path, text, "env={TOKEN: '${HF_TOKEN:-x}'}", "lease=${HF_TOKEN}")
            message = "HF_TOKEN is a secret and is never written into a plan; ranks find it in their environment"
            assert sorted(lines) == [f"spec.yaml: --set {where}: {message}" for where in ("env.TOKEN", "lease")]


def test_a_variable_that_is_no_text_is_refused(tmp_path: Path) -> None:
    lines = problems(tmp_path, SFT + "    env: {A: '${BYTES}'}\n")
    assert lines == ["spec.yaml:4:14: scripts.sft.env.A: the value of variable BYTES is not UTF-8"]


def test_variables_cannot_fill_the_memory(tmp_path: Path) -> None:
    text = "env: {A: '" + "${X}" * 1000 + "'}\n" + SFT
    with pytest.raises(SpecError, match="variables make it larger than 4 MiB"):
        read(tmp_path, text, environ={"X": "x" * 100_000})


def test_an_escaped_text_is_taken_literally(tmp_path: Path) -> None:
    text = "a $$ ${HOME} ${ $x"
    assert read(tmp_path, f"env: {{A: '{escape(text)}'}}\n{SFT}").env == {"A": text}


def test_a_byte_order_mark_and_json_are_fine(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf{"scripts": {"a": {"run": ["train.py", "\\u00e9"], "procs": 2}}}'
    assert read(tmp_path, text).scripts["a"].program.args == ("é",)


def test_aliases_are_followed_and_name_their_own_place(tmp_path: Path) -> None:
    text = "env: &e {A: b}\nscripts:\n  x: {run: train.py, env: *e}\n"
    assert read(tmp_path, text).scripts["x"].env == {"A": "b"}
    assert problems(tmp_path, text + "  y: {run: train.py, restart: *e}\n") == [
        "spec.yaml:1:10: scripts.y.restart.A: unknown key"
    ]


def test_keys_left_empty_are_as_if_absent(tmp_path: Path) -> None:
    text = "name:\nenv:\nhosts: ~\nactors: null\n" + SFT + "    restart:\n      max:\n    hosts:\n    preload:\n"
    assert read(tmp_path, text).model_dump() == read(tmp_path, SFT).model_dump()
    assert problems(tmp_path, "scripts:\n  a:\nactors:\n  b:\n") == [
        "spec.yaml:2:5: scripts.a: nothing to run: give it run (a Python file), module or command",
        "spec.yaml:4:5: actors.b: class is missing",
    ]
    assert problems(tmp_path, "driver: null\nscripts: ~\n") == [
        "spec.yaml:1:1: nothing to launch: name a mesh under scripts, actors or services, or a driver"
    ]
    assert read(tmp_path, SFT + "    command: null\n").scripts["sft"].preload == ("torch?",)


def test_gpu_order_may_be_named_as_it_is_anyway(tmp_path: Path) -> None:
    text = f"env: {{CUDA_DEVICE_ORDER: PCI_BUS_ID}}\n{SFT}    with_gpus: true\n"
    assert read(tmp_path, text).env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    hidden = f"env: {{CUDA_VISIBLE_DEVICES: ''}}\n{SFT}"
    assert read(tmp_path, hidden).env == {"CUDA_VISIBLE_DEVICES": ""}


def test_workdir_is_the_place_of_programs(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "deep.py").touch()
    spec = read(tmp_path, "workdir: pkg/../pkg\nscripts: {a: {run: deep.py}, b: {run: ../train.py}}")
    assert spec.workdir == tmp_path / "pkg"
    assert spec.scripts["a"].program.target == "deep.py"
    assert spec.scripts["b"].program.target == "../train.py"


def test_problems_of_planning_get_the_place_of_what_they_name(tmp_path: Path) -> None:
    spec = read(tmp_path, FULL, "actors.trainer.procs=4")
    places = {
        "scripts.sft.procs": (39, 12),
        "scripts.sft.hosts": (37, 3),  # absent: the mesh
        "hosts[2].gpus": (11, 11),
        "hosts.3": (13, 5),
        "services.policy.0": (30, 3),
        "nonsense": (2, 1),
    }
    assert {where: (p.line, p.column) for where in places if (p := spec.problem(where, "x"))} == places
    rendered = spec.problem("actors.trainer.procs", "too many").render(spec.source)
    assert rendered == "spec.yaml: --set actors.trainer.procs: too many"


def test_a_run_can_be_renamed(tmp_path: Path) -> None:
    assert read(tmp_path, "name: a\n" + SFT, name="b").name == "b"
    assert problems(tmp_path, SFT, name="-b") == [
        "spec.yaml: --name: '-b' is not a name for a run: at most 63 letters, digits, '.', '_' or '-', "
        "the first a letter or digit"
    ]


@pytest.mark.parametrize(("file", "name"), [("my spec.yaml", "my-spec"), ("_é.yaml", "run"), (".x.y.yml", "x.y")])
def test_a_run_is_named_after_its_file(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / file
    path.write_text("scripts: {a: {command: 'true'}}")
    assert load(path, environ={}).name == name


@pytest.mark.parametrize("file", DEFAULT_SPECS)
def test_the_run_of_a_folders_spec_is_named_after_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    for folder, name in (("first", "first"), ("my trial", "my-trial"), ("é", "run")):
        (tmp_path / folder / "inner").mkdir(parents=True)
        path = tmp_path / folder / file
        path.write_text("scripts: {a: {command: 'true'}}")
        monkeypatch.chdir(path.parent / "inner")
        assert {load(p, environ={}).name for p in (path, Path("..", file))} == {name}
        monkeypatch.chdir(path.parent)
        assert load(Path(file), environ={}).name == name


def test_no_more_than_a_hundred_problems_are_told(tmp_path: Path) -> None:
    lines = problems(tmp_path, "{" + ",".join(f"k{i}: 1" for i in range(3000)) + "}")
    assert len(lines) == 101
    assert lines[-1] == "spec.yaml: and 2901 more problems"


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_too_many_keys_are_refused_before_they_are_looked_at(tmp_path: Path, count: int) -> None:
    lines = problems(tmp_path, "\n".join(f"k{i}: 1" for i in range(count)))
    assert lines == ["spec.yaml:5000:8: more than 10000 values"]


def test_too_large_a_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(SpecError, match="larger than 1 MiB"):
        load(path, environ={})


def test_a_missing_file_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").touch()
    with pytest.raises(NotFoundError) as caught:
        load(tmp_path / "stf.yaml", environ={})
    assert caught.value.exit_code == 66
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint == "did you mean sft.yaml?"
    (tmp_path / "sft.py").touch()
    with pytest.raises(NotFoundError) as caught:
        load(tmp_path / "sft.yml", environ={})
    assert caught.value.hint == "did you mean sft.yaml?", "only a spec can be meant"
    with pytest.raises(NotFoundError, match="is a folder") as caught:
        load(tmp_path, environ={})
    assert caught.value.hint == "did you mean sft.yaml?"
    with pytest.raises(NotFoundError, match="no spec file"):
        load(tmp_path / "no" / "such.yaml", environ={})
    with pytest.raises(NotFoundError):
        load(tmp_path / ("x" * 5000), environ={})
    with pytest.raises(NotFoundError):
        load(Path("a\0b"), environ={})


def test_reading_a_spec_needs_neither_torch_nor_a_terminal() -> None:
    code = (
        "import sys, forgectl.spec.load; print([m for m in ('torch', 'rich', 'click', 'monarch') if m in sys.modules])"
    )
    root = str(Path(forgectl.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
