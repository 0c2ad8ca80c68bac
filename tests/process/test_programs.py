"""Everything that a mesh can run, with what arguments, environment and company."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import Forge, listening_ports, processes_of, until
from tests.process.outputs import document_of, failures, log_of, over, until_said

PYTHON = sys.executable


def _told(forge: Forge, run: str, mesh: str) -> dict[str, Any]:
    """What tell.py told."""
    told: dict[str, Any] = json.loads(log_of(forge, run, mesh).splitlines()[0])
    return told


def _spec(**parts: Any) -> str:
    """A spec from Python values, so that no quoting of YAML is in the way."""
    return yaml.safe_dump(parts, allow_unicode=True, sort_keys=False)


# ---------------------------------------------------------------- kinds of programs


def test_modules_commands_and_spawned_interpreters_run_as_files_do(forge: Forge) -> None:
    package = forge.folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import runpy; from package.inner import say; say()")
    (package / "inner.py").write_text(
        "import sys, os\n"
        "def say():\n"
        "    print(__name__, os.path.basename(sys.argv[0]), sys.argv[1:], sys.path[0] == os.getcwd())\n"
        "if __name__ == '__main__':\n"
        "    from . import __name__ as package\n"
        "    print('in', package)\n"
        "    say()\n"
    )
    forge.write("spawned.py", "import sys; print(__name__, sys.argv[1:], sys.orig_argv[0])")
    document = over(
        forge,
        _spec(
            scripts={
                "module": {"module": "package.inner a 'b c'", "preload": []},
                "package": {"module": "package x", "preload": []},
                "command": {
                    "command": ["bash", "-c", 'for i in 1 2 3; do echo "$i of rank $RANK: $0 $1"; done', "x", "y"]
                },
                "pipe": {"command": ["bash", "-c", "yes | head -n 1; echo $${PIPESTATUS[0]}"]},
                "spawn": {"run": "spawned.py 1 2", "start_method": "spawn"},
            }
        ),
    )
    run = document["run"]
    assert document["exit_code"] == 0, failures(document)
    assert log_of(forge, run, "module") == "in package\n__main__ inner.py ['a', 'b c'] True\n"
    assert log_of(forge, run, "package") == "package.inner __main__.py ['x'] True\n"
    assert log_of(forge, run, "command") == "".join(f"{i} of rank 0: x y\n" for i in (1, 2, 3))
    assert log_of(forge, run, "pipe") == f"y\n{128 + signal.SIGPIPE}\n", "SIGPIPE acts as programs expect it to"
    assert log_of(forge, run, "spawn") == f"__main__ ['1', '2'] {PYTHON}\n"


def test_a_command_finds_its_signals_as_a_shell_would_leave_them(forge: Forge) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; what it starts should not, and nothing may stay blocked."""
    document = over(forge, "scripts: {signals: {command: cat /proc/self/status}}")
    masks = re.compile(r"Sig(?:Blk|Ign|Cgt):\s+(\w+)")
    bare = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    assert masks.findall(log_of(forge, document["run"], "signals")) == masks.findall(bare)


def test_a_program_that_cannot_be_run_is_told_with_the_shells_codes(forge: Forge) -> None:
    forge.write("data.txt", "no program")
    forge.write("garbage", "\x7fELF no program")
    (forge.folder / "garbage").chmod(0o755)
    document = over(
        forge,
        """
scripts:
  missing: {command: no-such-program --flag}
  absent: {command: ./no/such/path}
  data: {command: ./data.txt}
  folder: {command: ./}
  garbage: {command: ./garbage}
  module: {module: no.such.module, preload: []}
""",
    )
    found = {m["mesh"]: (m["ranks"][0]["exit_code"], m["reason"]) for m in document["meshes"]}
    assert {mesh: code for mesh, (code, _) in found.items()} == {
        "missing": 127,
        "absent": 127,
        "data": 126,
        "folder": 126,
        "garbage": 126,
        "module": 1,
    }
    reasons = {mesh: reason.partition(": ")[2] for mesh, (_, reason) in found.items()}
    assert "cannot run 'no-such-program': No such file or directory" in reasons["missing"]
    assert "cannot run './no/such/path': No such file or directory" in reasons["absent"]
    assert "cannot run './data.txt': Permission denied" in reasons["data"]
    assert "cannot run './garbage': Exec format error" in reasons["garbage"]
    assert any("no.such.module" in line for line in failures(document)["module"]["log_tail"])
    assert "forgectl: cannot run 'no-such-program': No such" in log_of(forge, document["run"], "missing")


def test_torch_works_where_nothing_was_preloaded(forge: Forge) -> None:
    """A fresh interpreter, and a command: the store comes up when it is first dialed."""
    code = (PROGRAM := Path(__file__).parent.parent / "programs" / "reduce.py").read_text()
    document = over(
        forge,
        _spec(
            scripts={
                "spawn": {"run": [str(PROGRAM), "once"], "procs": 2, "start_method": "spawn"},
                "command": {"command": [PYTHON, "-c", code, "once"], "procs": 2},
            }
        ),
    )
    assert document["exit_code"] == 0, failures(document)
    for mesh in ("spawn", "command"):
        for rank in range(2):
            assert "sum 3;" in log_of(forge, document["run"], mesh, rank)


# ---------------------------------------------------------------- arguments and environment

AWKWARD = [
    "two words",
    "",
    "it's",
    '"quoted"',
    "ünï → 漢字",
    "tab\there",
    "new\nline",
    "$HOME",
    "*",
    "-n",
    "--",
    "\\",
    "#",
]


def test_arguments_arrive_as_they_were_written(forge: Forge) -> None:
    literal = [a.replace("$", "$$") for a in AWKWARD]
    document = over(
        forge,
        _spec(
            scripts={
                "list": {"run": ["PROGRAMS/tell.py", *literal], "preload": []},
                "string": {"run": "PROGRAMS/tell.py 'two words' \"it's\" ünï\\ x '' a#b $$HOME", "preload": []},
                "module": {"module": ["tell", *literal], "preload": [], "env": {"PYTHONPATH": "PROGRAMS"}},
                "command": {"command": [PYTHON, "PROGRAMS/tell.py", *literal]},
                "spawn": {"run": ["PROGRAMS/tell.py", *literal], "start_method": "spawn"},
            }
        ),
    )
    run = document["run"]
    assert document["exit_code"] == 0, failures(document)
    for mesh in ("list", "module", "command", "spawn"):
        assert (mesh, _told(forge, run, mesh)["argv"]) == (mesh, AWKWARD)
    assert _told(forge, run, "string")["argv"] == ["two words", "it's", "ünï x", "", "a#b", "$HOME"]


def test_the_nearest_word_on_a_variable_wins(forge: Forge) -> None:
    forge.env |= {"OUTER": "launcher", "OF_SPEC": "launcher", "OF_HOST": "launcher", "OF_MESH": "launcher"}
    names = "OUTER OF_SPEC OF_HOST OF_MESH FILLED"
    document = over(
        forge,
        _spec(
            hosts=[{"name": "local", "local": True, "env": {"OF_HOST": "host", "OF_MESH": "host"}}],
            env={
                "TELL": names,
                "OF_SPEC": "spec",
                "OF_HOST": "spec",
                "OF_MESH": "spec",
                "FILLED": "${OUTER} $$ ${NOT:-x}",
            },
            scripts={
                "one": {"run": "PROGRAMS/tell.py", "preload": [], "env": {"OF_MESH": "mesh"}},
                "two": {"run": "PROGRAMS/tell.py", "preload": []},
                "cmd": {"command": [PYTHON, "PROGRAMS/tell.py"], "env": {"OF_MESH": "mesh"}},
            },
        ),
    )
    common = {"OUTER": "launcher", "OF_SPEC": "spec", "OF_HOST": "host", "FILLED": "launcher $ x"}
    for mesh, own in (("one", "mesh"), ("two", "host"), ("cmd", "mesh")):
        assert _told(forge, document["run"], mesh)["env"] == {**common, "OF_MESH": own}


SECRET = "s3cr3t-ünï-value"


def test_a_secret_reaches_its_ranks_and_nobody_else(forge: Forge) -> None:
    forge.env["SOME_TOKEN"] = SECRET
    text = """
secrets: [SOME_TOKEN]
scripts:
  file: {run: stay.py, preload: []}
  command: {command: PYTHON stay.py}
  fails: {run: fails.py, preload: []}
""".replace("PYTHON", PYTHON)
    forge.write("stay.py", "import os, signal; print(len(os.environ['SOME_TOKEN']), flush=True); signal.pause()")
    forge.write("fails.py", "import os; raise ValueError('refused: ' + os.environ['SOME_TOKEN'])")
    seen = [forge.ok("plan", forge.spec(text)), forge.ok("plan", forge.spec(text), "--json")]
    result = forge.run("launch", forge.spec(text), "-d")
    [run] = forge.runs()
    for mesh in ("file", "command"):
        assert until_said(forge, run, mesh, "\n") == f"{len(SECRET)}\n"
    forge.until_state(run, "fails", "failed")
    seen += processes_of(run).values()
    seen += [result.stdout, result.stderr, forge.ok("status", "-v"), forge.ok("status", "--json", "-a")]
    assert "refused: ***" in seen[-1], "it is hidden, not the whole failure"
    forge.ok("shutdown", "--all")
    seen += [forge.ok("status", "--json", "-a")]
    assert [text for text in seen if SECRET in text or json.dumps(SECRET)[1:-1] in text] == []
    ranks_own = forge.run_dir(run) / "logs"
    own = {p for p in forge.home.rglob("*") if p.is_file() and ranks_own not in p.parents}
    assert {"plan.json", "events.jsonl", "controller.log", "status.json", "local.log"} <= {p.name for p in own}
    forms = (SECRET.encode(), json.dumps(SECRET)[1:-1].encode())
    assert [p for p in own if any(form in p.read_bytes() for form in forms)] == []


# ---------------------------------------------------------------- many and together


def test_sixty_four_ranks_at_once(forge: Forge) -> None:
    document = over(forge, "scripts: {tell: {run: PROGRAMS/tell.py, procs: 64, preload: [], env: {TELL: RANK}}}")
    assert document["state"] == "succeeded"
    told = [json.loads(log_of(forge, document["run"], "tell", rank))["env"]["RANK"] for rank in range(64)]
    assert told == [str(rank) for rank in range(64)]
    assert len({r["pid"] for r in document["meshes"][0]["ranks"]}) == 64


def test_a_run_ends_when_all_its_scripts_have(forge: Forge) -> None:
    forge.write("wait.py", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('gone')")
    run = forge.launch("scripts: {short: {command: 'true'}, long: {run: wait.py, procs: 2, preload: []}}")
    forge.until_state(run, "short", "succeeded")
    assert (forge.mesh(run, "long")["state"], forge.document(run)["state"]) == ("running", "running")
    forge.write("go", "")
    document = forge.until_ended(run)
    assert (document["state"], document["exit_code"]) == ("succeeded", 0)
    assert log_of(forge, run, "long", 1) == "gone\n"


def test_a_run_ends_with_its_driver(forge: Forge) -> None:
    forge.write("drive.py", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('driven')")
    run = forge.launch(
        "driver: {command: PYTHON drive.py}\nscripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}".replace(
            "PYTHON", PYTHON
        )
    )
    until_said(forge, run, "stay", "here:", 1)
    forge.write("go", "")
    document = forge.until_ended(run)
    assert {m["mesh"]: (m["kind"], m["state"]) for m in document["meshes"]} == {
        "driver": ("driver", "succeeded"),
        "stay": ("script", "stopped"),
    }
    assert (document["state"], document["exit_code"]) == ("succeeded", 0)
    assert log_of(forge, run, "driver") == "driven\n"


def test_a_driver_outlives_scripts_that_end_before_it_and_decides_the_code(forge: Forge) -> None:
    forge.write("drive.py", "import os, sys, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nsys.exit(5)")
    run = forge.launch(
        "driver: {command: PYTHON drive.py}\nscripts: {short: {command: 'true'}}".replace("PYTHON", PYTHON)
    )
    forge.until_state(run, "short", "succeeded")
    assert forge.document(run)["state"] == "running"
    forge.write("go", "")
    document = forge.until_ended(run)
    assert (document["state"], document["exit_code"]) == ("failed", 5)


def test_a_run_without_torch_says_nothing_of_it(forge: Forge) -> None:
    """A driver alone, of a file: the same fork server as a script's."""
    forge.write("drive.py", "import os; print(os.environ['FORGE_MESH'], os.environ['WORLD_SIZE'])")
    result = forge.run("launch", forge.spec("driver: {run: drive.py}"), "--json")
    document = document_of(result)
    assert log_of(forge, document["run"], "driver") == "driver 1\n"


# ---------------------------------------------------------------- hosts and ports

TWO_HOSTS = """
hosts: [local, {name: sim1, local: true}]
scripts:
  reduce: {run: PROGRAMS/reduce.py, procs: 4, hosts: 2}
"""


def test_a_mesh_over_two_hosts_listens_nowhere_but_at_its_store(forge: Forge) -> None:
    run = forge.launch(TWO_HOSTS)
    said = []
    for rank in range(4):
        log = until_said(forge, run, "reduce", "sum 10;", rank)
        said.append(dict(re.findall(r"(\w+)=(\S+)", log)))
    assert [s["RANK"] for s in said] == ["0", "1", "2", "3"]
    assert [s["LOCAL_RANK"] for s in said] == ["0", "1", "0", "1"]
    assert [s["GROUP_RANK"] for s in said] == ["0", "0", "1", "1"]
    mesh = forge.mesh(run, "reduce")
    assert [r["host"] for r in mesh["ranks"]] == ["local", "local", "sim1", "sim1"]
    processes = processes_of(run)
    ranks = {r["pid"] for r in mesh["ranks"]}
    assert ranks <= processes.keys()
    assert listening_ports(processes.keys() - ranks) == {("127.0.0.1", int(said[0]["MASTER_PORT"]))}
    assert forge.document(run)["hosts"][1]["name"] == "sim1"
    os.kill(next(iter(ranks)), signal.SIGKILL)
    assert forge.until_ended(run)["state"] == "failed"


def test_without_a_rendezvous_to_serve_only_its_socket_listens(forge: Forge) -> None:
    run = forge.launch("scripts: {a: {run: PROGRAMS/stay.py, procs: 2, preload: []}, b: {command: sleep 1000}}")
    until(lambda: "here" in log_of(forge, run, "a", 1), "the ranks")
    found = listening_ports(set(processes_of(run)))
    assert len(found) == 2
    assert {address for address, _ in found} == {"127.0.0.1"}
