"""What a user sees of every command: exit codes, hints, machine-readable output, pipes, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest

from forgectl.cli.app import app
from forgectl.cli.parameters import Command
from tests.conftest import PROGRAMS, Forge, processes_of, until

STAY = """
scripts:
  stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}
"""

# ------------------------------------------------------------ what cannot be done

WRONG = [
    ("lanch spec.yaml", 64, "no such command: 'lanch'", "did you mean `forgectl launch`?"),
    ("help lanch", 64, "no such command: 'lanch'", "did you mean `forgectl launch`?"),
    ("stop stay", 64, "no such command: 'stop'", "did you mean `forgectl shutdown`?"),
    ("work.py", 64, "no such command: 'work.py'", "did you mean `forgectl run work.py`?"),
    ("quux", 64, "no such command: 'quux'", "`forgectl help` lists all commands"),
    ("launch", 64, "no SPEC was named, and /", "name one, such as spec.yaml; or `forgectl init`"),
    ("up", 64, "no SPEC was named, and /", "name one, such as spec.yaml; or `forgectl init`"),
    ("launch work.py", 64, "work.py is a Python program, not a spec", "hint: forgectl run work.py"),
    ("launch spec.yaml -d --ranks 0", 64, "--ranks is about output, of which -d shows none", "`forgectl logs`"),
    ("launch spec.yaml -q --no-prefix", 64, "of which --quiet shows none", "keep one"),
    ("launch spec.yaml --ranks 0,2", 66, "--ranks: no mesh has a rank 2", "there are ranks 0 to 1"),
    ("run --ranks 1 work.py", 66, "--ranks: no mesh has a rank 1", "there is only rank 0"),
    ("run --replace --ranks x work.py", 64, "--ranks 'x': expected ranks such as 0,2-5", ""),
    ("attach nobody --ranks 0-", 64, "--ranks '0-'", ""),
    ("config spec.yaml -o xml", 64, "'xml' is not one of 'yaml', 'json'", ""),
    ("config spec.yaml --set scripts.stay.proc=3", 65, "knows no key 'proc'", "'procs'"),
    ("launch --tiemout 3 spec.yaml", 64, "no such option: --tiemout; did you mean --timeout?", "launch --help"),
    ("launch spec.yaml --timeout soon", 64, "'soon'", "forgectl launch --help"),
    ("launch spec.yaml --timeout -1", 64, "-1.0 is not in the range", ""),
    ("launch spec.yaml extra", 64, "unexpected extra argument", "forgectl launch --help"),
    ("launch spec.yml", 66, "no spec file spec.yml; looked in", "did you mean spec.yaml?"),
    ("launch .", 66, "is a folder", "spec.yaml"),
    ("plan spce.yaml", 66, "no spec file", "spec.yaml"),
    ("plan spec.yaml --set scripts.stay.proc=3", 65, "knows no key 'proc'", "'procs'"),
    ("plan spec.yaml --set procs", 65, "expected PATH=VALUE", ""),
    ("launch spec.yaml --name ../up", 65, "'../up' is not a name", ""),
    ("run", 64, "nothing to run", "forgectl run"),
    ("run wrok.py", 66, "no script wrok.py", "did you mean 'work.py'?"),
    ("run -n 0 work.py", 64, "Invalid value for '-n' / '--nproc': 0 is not", "forgectl run --help"),
    ("run -n two work.py", 64, "'two'", "forgectl run --help"),
    ("run -e NOVALUE work.py", 64, "expected NAME=VALUE", ""),
    ("run --name a/b work.py", 64, "--name: 'a/b' is not a name", ""),
    ("run wrk.py", 66, "no script wrk.py", "did you mean 'work.py'?"),
    ("run -m", 64, "name a MODULE after -m", ""),
    ("run work", 66, "no file work", "forgectl run -m work"),
    ("run -m --no-python work", 64, "exclude each other", ""),
    ("run --gpus work.py", 64, "wants 1 GPU", "leave out --gpus to run on CPUs"),
    (
        "run -e RANK=7 -e MASTER_PORT=1 work.py",
        64,
        "--env RANK: forgectl sets it",
        "--env MASTER_PORT: forgectl sets it",
    ),
    ("run --rdzv_endpoint=x:1 --tee 3 work.py", 64, "--rdzv-endpoint: leave it out", "--tee: leave it out"),
    ("run --nnodes 2 work.py", 64, "--nnodes 2", "--host"),
    ("run -n 2 --nproc-per-node 2 work.py", 64, "keep one", ""),
    ("run -n cpu --host elsewhere work.py", 64, "give a number for other hosts", ""),
    ("run --workdir nowhere work.py", 64, "--workdir: ", "no such folder"),
    ("status --jsn", 64, "--jsn", "--json"),
    ("status nobody", 66, "no run or mesh 'nobody'", "forgectl status"),
    ("status a b", 64, "unexpected extra argument", ""),
    ("logs", 66, "nothing is running", ""),
    ("logs nobody --since yesterday", 64, "--since 'yesterday' is no time", "10m"),
    ("logs nobody --grep (", 64, "--grep '('", "regular expression"),
    ("logs nobody -f --until 1m", 64, "--until shows what is past", ""),
    ("logs nobody -p --generation 2", 64, "--previous is a generation", ""),
    ("stack", 66, "nothing is running", ""),
    ("stack nobody", 66, "no run or mesh 'nobody'", ""),
    ("attach", 66, "nothing is running", ""),
    ("attach nobody", 66, "no run 'nobody'", ""),
    ("wait", 66, "nothing is running", ""),
    ("wait nobody --for lunch", 64, "'lunch' is not one of 'ready', 'ended'", ""),
    ("restart", 64, "Missing argument 'NAME", ""),
    ("restart nobody", 66, "no run or mesh 'nobody'", ""),
    ("call nobody look", 66, "no run or mesh 'nobody'", ""),
    ("logs nobody", 66, "no run or mesh 'nobody'", ""),
    ("logs nobody --ranks 1-", 64, "--ranks '1-'", ""),
    ("logs nobody -n -1", 64, "-1 is not in the range", ""),
    ("logs ../../etc/passwd", 66, "no run '..'", ""),
    ("shutdown", 64, "say what to end", "forgectl status"),
    ("down", 64, "this folder has no forge.yaml", "forgectl status"),
    ("shutdown --all stay", 64, "say in one way what to end", ""),
    ("shutdown nobody", 66, "no run or mesh 'nobody'", ""),
    ("shutdown --run ../..", 66, "no run '../..'", ""),
    ("init /proc/nowhere/to/be/made", 66, "cannot write into /proc/nowhere", ""),
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """A forgectl with a spec and a script that nobody launches."""
    forge = Forge(tmp_path_factory.mktemp("desk"))
    forge.spec(STAY)
    forge.write("work.py", "print('work')")
    return forge


@pytest.mark.parametrize(("command", "code", "says", "advises"), WRONG, ids=[w[0] for w in WRONG])
def test_what_cannot_be_done_is_said_in_a_paragraph(
    desk: Forge, command: str, code: int, says: str, advises: str
) -> None:
    result = desk.run(*command.split())
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert says in result.stderr
    assert advises in result.stderr
    assert result.stderr.startswith("forgectl: ")
    assert "Traceback" not in result.stderr
    assert "env var" not in result.stderr, "a variable is named only where it may set the option"
    assert len(result.stderr.splitlines()) <= 3
    assert desk.runs() == []
    if isinstance(known := app.get_command(click.Context(app), command.partition(" ")[0]), Command):
        assert code in known.codes, "its help does not have this code"


def test_a_bad_spec_is_told_whole_and_nothing_is_started(forge: Forge) -> None:
    spec = "hosts: [local, {name: local, local: true}]\nscripts:\n"
    spec += "  a: {run: nope.py, proc: 2}\n  b: {command: ls, procs: -1}\n"
    for command in ("plan", "launch"):
        result = forge.run(command, forge.spec(spec))
        assert result.returncode == 65
        places = [line.partition("spec.yaml:")[2].split(": ")[0] for line in result.stderr.splitlines()]
        assert {p.split(":")[0] for p in places if p} >= {"1", "3", "4"}, result.stderr
        assert "did you mean 'procs'?" in result.stderr
        assert result.stdout == ""
        assert not forge.home.exists()


def test_help_and_version(desk: Forge) -> None:
    assert desk.ok("--version").startswith("forgectl ")
    overview = desk.ok("--help")
    assert desk.ok("--version") == desk.ok("-V") == desk.ok("version")
    assert overview == desk.ok("help") and overview.startswith("Usage: forgectl [OPTIONS] COMMAND\n")
    for command in ("launch", "up", "ps", "version"):
        shown = desk.ok("help", command)
        assert shown.startswith(f"Usage: forgectl {command} [OPTIONS]")
        assert shown == desk.ok(command, "--help") == desk.ok(command, "-h")
    bare = desk.run()
    assert (bare.returncode, bare.stdout.splitlines()[0]) == (64, overview.splitlines()[0])


def test_schema_is_a_json_schema(desk: Forge) -> None:
    schema = json.loads(desk.ok("schema"))
    assert "scripts" in schema["properties"]


def test_init_writes_once_and_what_it_writes_can_be_planned(forge: Forge) -> None:
    assert "forgectl launch first/forge.yaml" in forge.ok("init", "first")
    forge.ok("plan", "first/forge.yaml")
    again = forge.run("init", "first")
    assert again.returncode == 64
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("template", "files"),
    [
        ("script", {"forge.yaml", "train.py"}),
        ("actor", {"counter.yaml", "counter.py"}),
        ("service", {"greeter.yaml", "greeter.py"}),
        ("sft", {"sft.yaml", "sft.py", "sums.py"}),
        ("grpo", {"grpo.yaml", "grpo.py", "sums.py"}),
    ],
)
def test_init_writes_each_template_as_files_that_can_be_planned(forge: Forge, template: str, files: set[str]) -> None:
    said = forge.ok("init", "--template", template, "mine")
    mine = forge.folder / "mine"
    assert {path.name for path in mine.iterdir()} == files
    assert not any(path.is_symlink() for path in mine.iterdir())
    [spec] = mine.glob("*.yaml")
    assert f"forgectl launch mine/{spec.name}" in said
    assert "sample_configs" not in spec.read_text()
    forge.ok("plan", f"mine/{spec.name}")


def test_a_template_that_there_is_not_is_an_error_that_names_the_nearest(desk: Forge) -> None:
    wrong = desk.run("init", "--template", "grop", "mine")
    assert (wrong.returncode, "did you mean 'grpo'?" in wrong.stderr) == (64, True), wrong.stderr
    assert not (desk.folder / "mine").exists()
    other = desk.run("init", "--template", "kubernetes", "mine")
    assert (other.returncode, "actor, grpo, script, service, sft" in other.stderr) == (64, True), other.stderr


# ------------------------------------------------------------ names


def test_a_name_in_use_is_refused_and_the_way_on_is_said(forge: Forge) -> None:
    run = forge.launch(STAY)
    for options in ([], ["--name", "spec"]):
        again = forge.run("launch", "spec.yaml", "-d", *options)
        assert again.returncode == 75
        assert f"the name spec is in use by run {run}" in again.stderr
        assert f"forgectl shutdown {run}" in again.stderr
        assert "--name OTHER" in again.stderr
    assert forge.runs() == [run]


def test_run_takes_a_free_name_by_itself(forge: Forge) -> None:
    (forge.folder / "train.py").symlink_to(PROGRAMS / "stay.py")
    starts = [forge.start("run", "-d", "--env", "X=1", "train.py") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in starts]
    assert [process.returncode for process in starts] == [0, 0], outputs
    assert sorted(r["name"] for r in forge.status()) == ["train", "train-2"]


def test_a_mesh_of_several_runs_needs_its_run(forge: Forge) -> None:
    one, two = forge.launch(STAY), forge.launch(STAY, "--name", "two")
    for command in ("status", "logs", "shutdown"):
        result = forge.run(command, "stay")
        assert result.returncode == 64
        assert f"{one}/stay" in result.stderr
        assert f"{two}/stay" in result.stderr
    assert f"{two}/stay" not in forge.ok("status", f"{one}/stay")
    assert forge.ok("logs", "two/stay", "--ranks", "1", "--no-prefix") == "here: rank 1 of 2, generation 0\n"
    for name, near in (("tow/stay", "did you mean 'two'?"), ("two/sta", "did you mean 'stay'?")):
        result = forge.run("logs", name)
        assert result.returncode == 66
        assert near in result.stderr
    assert forge.ok("logs", "two/stay/1", "--no-prefix") == "here: rank 1 of 2, generation 0\n"
    rank = forge.run("shutdown", "two/stay/1")
    assert (rank.returncode, "live and end together" in rank.stderr) == (64, True)
    assert forge.ok("shutdown", "two").startswith(f"{two}/stay stopped: 2 × SIGTERM")
    assert [r["run"] for r in forge.status()] == [one]


# ------------------------------------------------------------ plan and launch


def test_plan_prints_what_launch_runs(forge: Forge) -> None:
    spec = """
hosts: [{name: a, local: true, gpus: 2}, {name: b, local: true}]
env: {HOME_OF: all}
scripts:
  stay: {run: PROGRAMS/stay.py, procs: 2, hosts: [a, b], preload: [], env: {MINE: "1"}}
  fit: {command: [sleep, "1000"], procs: 2, hosts: [a], with_gpus: true}
"""
    planned = json.loads(forge.ok("plan", forge.spec(spec), "--json", "--set", "scripts.stay.procs=4"))
    run = forge.launch(spec, "--set", "scripts.stay.procs=4")
    launched = json.loads((forge.run_dir(run) / "plan.json").read_text())
    assert planned.pop("schema_version") == 1
    assert set(planned.pop("at_launch")) >= {"MASTER_ADDR", "MASTER_PORT", "FORGE_RUN_ID"}
    assert planned == launched
    assert {m["mesh"]: len(m["ranks"]) for m in forge.status()[0]["meshes"]} == {"stay": 4, "fit": 2}


@pytest.mark.parametrize("way", [[], ["-d"]])
def test_a_launch_that_does_not_come_up_in_time_is_rolled_back(forge: Forge, way: list[str]) -> None:
    forge.write("hang_on_import.py", (PROGRAMS / "hang_on_import.py").read_text())
    forge.write("work.py", "")
    spec = forge.spec("scripts: {work: {run: work.py, procs: 2, preload: [hang_on_import]}}")
    result = forge.run("launch", spec, "--timeout", "1", *way)
    assert result.returncode == 124
    assert "not up in time: work" in result.stderr
    [run] = forge.runs()
    until(lambda: not processes_of(run), "the end of what was begun")
    assert forge.document(run)["state"] == "stopped"


def test_json_of_launch_is_one_document_on_stdout(forge: Forge) -> None:
    up = json.loads(forge.ok("launch", forge.spec(STAY), "-d", "--json"))
    assert (up["schema_version"], up["runs"][0]["state"]) == (1, "running")
    forge.ok("shutdown", "--all")
    forge.write("work.py", "import sys; print('to the log'); sys.exit(3)")
    ended = forge.run("launch", forge.spec("scripts: {work: {run: work.py, preload: []}}"), "--json")
    assert ended.returncode == 3
    [run] = json.loads(ended.stdout)["runs"]
    assert (run["state"], run["exit_code"], run["meshes"][0]["ranks"][0]["exit_code"]) == ("failed", 3, 3)
    assert "work/0@local │ to the log" in ended.stderr


def test_detached_launch_prints_the_run_and_nothing_else(forge: Forge) -> None:
    forge.write("talk.py", "import time\nprint('much', flush=True)\ntime.sleep(1000)")
    out = forge.ok("launch", forge.spec("scripts: {talk: {run: talk.py, procs: 4, preload: []}}"), "-d")
    assert out.splitlines() == forge.runs()


# ------------------------------------------------------------ status

KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {"run": (str,), "name": (str,), "state": (str,), "spec": (str,), "started_at": (str,), "run_dir": (str,)},
    "controller": {"pid": (int,), "alive": (bool,)},
    "host": {"name": (str,), "state": (str,), "address": (str,), "last_seen": (str, type(None))},
    "mesh": {
        "mesh": (str,), "kind": (str,), "state": (str,), "desired": (int,), "ready": (int,), "generation": (int,),
        "restarts": (int,), "max_restarts": (int,), "reason": (str, type(None)),
    },
    "rank": {
        "rank": (int,), "local_rank": (int,), "host": (str,), "pid": (int,), "state": (str,),
        "exit_code": (int, type(None)), "signal": (int, type(None)), "gpus": (list,),
        "cpu_percent": (int, float), "rss_bytes": (int,), "log": (str,),
    },
}  # fmt: skip


def _check(kind: str, found: dict[str, Any]) -> None:
    for key, types in KEYS[kind].items():
        assert key in found, f"{kind}: {key} is missing"
        assert type(found[key]) in types, f"{kind}.{key} is {found[key]!r}"


def test_status_as_json_has_the_form_of_the_contract(forge: Forge) -> None:
    forge.launch(STAY)
    document = json.loads(forge.ok("status", "--json"))
    assert document["schema_version"] == 1
    [run] = document["runs"]
    _check("run", run)
    _check("controller", run["controller"])
    for host in run["hosts"]:
        _check("host", host)
    for mesh in run["meshes"]:
        _check("mesh", mesh)
        assert (mesh["kind"], mesh["state"]) == ("script", "running")
        for rank in mesh["ranks"]:
            _check("rank", rank)
            os.kill(rank["pid"], 0)
            assert Path(rank["log"]).exists()
    assert time.strptime(run["started_at"], "%Y-%m-%dT%H:%M:%SZ")


def test_status_watched_as_json_is_a_document_a_line_until_interrupted(forge: Forge) -> None:
    forge.launch(STAY)
    watching = forge.start("status", "-w", "--json")
    assert watching.stdout is not None
    lines = [watching.stdout.readline() for _ in range(2)]
    assert all(json.loads(line)["runs"][0]["state"] == "running" for line in lines)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (0, "")


def test_status_for_people(forge: Forge) -> None:
    assert "no runs" in forge.ok("status")
    assert forge.ok("shutdown", "--all") == "nothing is running\n"
    run = forge.launch(STAY)
    head, row = forge.ok("status").splitlines()
    headings = "RUN MESH KIND STATE READY HOSTS GPUS RESTARTS STARTED ELAPSED PROGRESS REASON"
    assert head.split() == headings.split()
    assert row.split()[:8] == [run, "stay", "script", "running", "2/2", "local", "-", "-"]
    assert [line.rstrip() for line in (head, row)] == [head, row]
    ranks = [line for line in forge.ok("status", "stay").splitlines() if line.startswith("stay/")]
    assert len(ranks) == 2
    forge.ok("shutdown", "--all")
    assert f"no runs; the last one, {run}, stopped " in forge.ok("status")
    assert "stopped by forgectl shutdown" in forge.ok("status", "-a")


# ------------------------------------------------------------ logs


def test_logs_of_some_ranks_and_lines(forge: Forge) -> None:
    forge.write("talk.py", "import os\nfor i in range(5): print(os.environ['RANK'], 'says', i)")
    assert forge.run("launch", forge.spec("scripts: {talk: {run: talk.py, procs: 4, preload: []}}")).returncode == 0
    lines = forge.ok("logs", "talk", "--ranks", "1,3", "-n", "2").splitlines()
    for rank in (1, 3):
        own = [line for line in lines if line.startswith(f"talk/{rank}")]
        assert own == [f"talk/{rank}@local │ {rank} says 3", f"talk/{rank}@local │ {rank} says 4"]
    assert len(lines) == 4
    assert sorted(forge.ok("logs", "talk", "--ranks", "0-1", "-n", "1", "--no-prefix").splitlines()) == [
        "0 says 4",
        "1 says 4",
    ]
    assert forge.ok("logs", "talk", "-n", "0") == ""
    missing = forge.run("logs", "talk", "--ranks", "2-9")
    assert missing.returncode == 66
    assert "no rank 4" in missing.stderr
    assert "ranks 0 to 3" in missing.stderr


def test_followed_logs_show_the_next_generation_and_end_with_the_run(forge: Forge) -> None:
    forge.write(
        "twice.py",
        "import os, signal, sys, time\n"
        "generation = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "print('generation', generation, flush=True)\n"
        "while not os.path.exists(f'go-{generation}'): time.sleep(0.01)\n"
        "sys.exit(1 - generation)",
    )
    run = forge.launch("scripts: {twice: {run: twice.py, preload: [], restart: {max: 1}}}")
    following = forge.start("logs", "-f", "twice", "--no-prefix")
    assert following.stdout is not None
    assert following.stdout.readline() == "generation 0\n"
    forge.write("go-0", "")
    assert following.stdout.readline() == "generation 1\n"
    forge.write("go-1", "")
    out, err = following.communicate(timeout=30)
    how = "forgectl: twice succeeded: restarted: rank 0 on local exited with code 1\n"
    assert (out, err, following.returncode) == ("", how, 0)
    assert forge.until_ended(run)["state"] == "succeeded"


def test_following_is_ended_by_ctrl_c(forge: Forge) -> None:
    run = forge.launch(STAY)
    following = forge.start("logs", "-f", "stay")
    assert following.stdout is not None
    following.stdout.readline()
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (130, "")
    assert forge.document(run)["state"] == "running"


# ------------------------------------------------------------ where the output goes


def test_nobody_reads_on(forge: Forge) -> None:
    forge.write("much.py", "for i in range(200_000): print('line', i)")
    forge.run("launch", forge.spec("scripts: {much: {run: much.py, preload: []}}"), stdin=subprocess.DEVNULL)
    for command in ("logs much", "plan spec.yaml --json", "schema", "status -a --json"):
        line = " ".join(forge.argv(*command.split())) + " | head -n 1 > /dev/null; echo ${PIPESTATUS[0]}"
        result = subprocess.run(["bash", "-c", line], cwd=forge.folder, env=forge.env, capture_output=True, text=True)
        assert result.stderr == ""
        assert result.stdout.strip() in ("0", "141")


def test_a_launch_nobody_reads_ends_its_run(forge: Forge) -> None:
    forge.write("talk.py", "import time\nwhile True: print('line', flush=True); time.sleep(0.01)")
    spec = forge.spec("scripts: {talk: {run: talk.py, preload: []}}")
    line = " ".join(forge.argv("launch", str(spec))) + " 2> errors | head -n 1; echo ${PIPESTATUS[0]}"
    result = subprocess.run(["bash", "-c", line], cwd=forge.folder, env=forge.env, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["talk/0@local │ line", "141"]
    [run] = forge.runs()
    assert forge.until_ended(run)["stopped_by"] == "the end of its reader"
    assert "Traceback" not in (forge.folder / "errors").read_text()


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_standard_streams_do_no_harm(forge: Forge, streams: str) -> None:
    forge.write("work.py", "print('done')")
    forge.spec("scripts: {work: {run: work.py, preload: []}}")
    for command in ("status", "launch spec.yaml", "logs work"):
        line = " ".join(forge.argv(*command.split())) + f" {streams}"
        result = subprocess.run(["bash", "-c", line], cwd=forge.folder, env=forge.env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
    [run] = forge.runs()
    assert (forge.run_dir(run) / "logs/work/0/rank-0.log").read_text() == "done\n"


def test_a_full_disk_behind_stdout_is_said(desk: Forge) -> None:
    line = " ".join(desk.argv("schema")) + " > /dev/full"
    result = subprocess.run(["bash", "-c", line], cwd=desk.folder, env=desk.env, capture_output=True, text=True)
    assert result.returncode == 75
    assert "No space left on device" in result.stderr


def _on_a_terminal(forge: Forge, command: str, columns: int, **env: str) -> str:
    """What a command writes to a terminal of that width."""
    import pty
    import struct
    from fcntl import ioctl
    from termios import TIOCSWINSZ

    master, slave = pty.openpty()
    ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    shown = bytearray()
    environment = {**{k: v for k, v in forge.env.items() if k != "NO_COLOR"}, "TERM": "xterm-256color", **env}
    with subprocess.Popen(
        forge.argv(*command.split()), cwd=forge.folder, env=environment, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the terminal's last user is gone
                break
            if not part:
                break
            shown += part
        process.wait()
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (80, "RUN MESH STATE READY ENDED ELAPSED"),
        (200, "RUN MESH KIND STATE READY HOSTS GPUS RESTARTS STARTED ENDED ELAPSED PROGRESS REASON"),
    ],
)
def test_tables_fit_the_terminal(forge: Forge, columns: int, headings: str) -> None:
    """No column is cut, none is folded into a rag, whatever the names and reasons."""
    forge.write("work.py", "import os\nif os.environ['RANK'] == '1': raise ValueError('the gradient exploded ' * 9)")
    name = "trainer-with-quite-a-long-name"
    spec = f"scripts: {{{name}: {{run: work.py, procs: 2, preload: []}}, b: {{run: work.py, preload: []}}}}"
    forge.run("launch", forge.spec(spec))
    for env in ({}, {"NO_COLOR": "1"}):
        shown = _on_a_terminal(forge, "status -a -v", columns, **env)
        assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)) == (not env)
        text = _without_escapes(shown)
        assert all(len(line) <= columns for line in text.splitlines())
        assert "…" not in text
        head, row = (line.split() for line in text.splitlines()[:2])
        assert head == headings.split()
        expected = {"MESH": name, "KIND": "script", "STATE": "failed", "READY": "0/2", "HOSTS": "local", "GPUS": "-"}
        assert all(row[i] == expected.get(heading, row[i]) for i, heading in enumerate(head[:-1]))
        assert " ".join(text.split()).count("the gradient exploded the gradient exploded") >= 1


def _without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_what_ranks_print_cannot_act_on_the_terminal(forge: Forge) -> None:
    forge.write("evil.py", r"print('\x1b]52;c;aGk=\x07title \x1b[2Jgone'); raise RuntimeError('\x1b[2J\x1b]0;x\x07')")
    forge.spec("scripts: {evil: {run: evil.py, preload: []}}")
    for command in ("launch spec.yaml", "status -a -v", "logs evil", "status evil"):
        shown = _on_a_terminal(forge, command, 100)
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown
        assert "\x07" not in shown
