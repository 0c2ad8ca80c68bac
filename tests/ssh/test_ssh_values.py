"""What a spec says arrives on ssh hosts as it was written, and does nothing else; secrets are seen by ranks alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROGRAMS
from tests.ssh.conftest import Far

ODD = [
    "two  words",
    'it\'s "quoted"',
    "line\nbreak",
    "tab\tand \\backslash",
    "$(touch /tmp/owned) `touch /tmp/owned` $HOME",
    "; touch /tmp/owned; #",
    "--version",
    "-oProxyCommand=touch /tmp/owned",
    "ünïcödé ☃",
    "",
    "*?[a-z]{1,2}~",
    "%d %s !! ^x &",
]


def shown(out: str) -> list[dict[str, Any]]:
    return [json.loads(line.partition("│ ")[2]) for line in out.splitlines() if "│ {" in line]


def spec_of(far: Far, workdir: Path, script: dict[str, Any], **more: object) -> Path:
    hosts = yaml.safe_load(far.hosts("host1", "host2"))
    body = {
        "hosts": hosts,
        "workdir": str(workdir),
        "scripts": {"show": {"procs": 2, "hosts": 2, "preload": [], **script}},
    }
    text = yaml.safe_dump({**body, **more}, allow_unicode=True).replace("$", "$$")
    return far.forge.write("odd.yaml", text)


def test_odd_values_arrive_as_they_are(far: Far) -> None:
    workdir = far.forge.folder / "plain"
    workdir.mkdir()
    (workdir / "show.py").write_text((PROGRAMS / "show.py").read_text())
    env = {f"ODD_{n}": value for n, value in enumerate(ODD)}
    out = far.forge.ok("launch", spec_of(far, workdir, {"run": ["show.py", *ODD]}, env=env))
    found = shown(out)
    assert len(found) == 2
    for rank in found:
        assert rank["args"] == ODD
        assert rank["env"] == env
    for name in far.lab.names:
        assert not far.lab.files(name, "/tmp/owned")
    assert not Path("/tmp/owned").exists()


@pytest.mark.parametrize(
    "name", [n for n in ODD if n and "/" not in n] + ["$(id)", "`id`", "a;b", "-rf", "новая папка"]
)
def test_workdirs_and_scripts_of_odd_names_run(far: Far, name: str) -> None:
    workdir = far.forge.folder / name
    workdir.mkdir()
    script = f"a {name}.py"  # a program may not begin with '-'
    (workdir / script).write_text((PROGRAMS / "show.py").read_text())
    out = far.forge.ok("launch", spec_of(far, workdir, {"run": [script]}))
    places = {rank["cwd"] for rank in shown(out)}
    assert len(places) == 1
    assert places.pop().startswith("/var/tmp/forgectl-0/work/")


def test_a_host_named_like_an_option_is_refused(far: Far) -> None:
    far.forge.write("show.py", (PROGRAMS / "show.py").read_text())
    for host in ("-oProxyCommand=touch /tmp/owned", "a@-oProxyCommand=x", "host1 host2", "host1\nhost2", ""):
        done = far.forge.run("run", "--host", host, "show.py")
        assert done.returncode == 64, (host, done.stderr)
    assert not Path("/tmp/owned").exists()


SECRET = "s3cr3t-çà$(x)'\"-value"


def test_secrets_are_seen_by_ranks_alone(far: Far) -> None:
    far.forge.env["TOKEN"] = SECRET
    body = "secrets: [TOKEN]\nscripts: {stay: {run: stay.py, procs: 2, hosts: 2, preload: []}}"
    run = far.launch(body, "host1", "host2")
    assert SECRET not in far.forge.ok("plan", far.forge.folder / "spec.yaml", "--json")
    ranks = far.forge.mesh(run, "stay")["ranks"]
    for rank in ranks:
        environ = far.lab.path(rank["host"], f"/proc/{rank['pid']}/environ").read_bytes()
        assert f"TOKEN={SECRET}".encode() in environ.split(b"\0") or rank["pid"] in far.processes(run)[rank["host"]]
    mark = SECRET.encode()
    lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if _readable(p)]
    assert not [line for line in lines if mark in line]
    for name in ("host1", "host2"):
        found = far.lab.run(name, ["grep", "-rlF", "--", SECRET, "/var/tmp", "/tmp/forgectl-0", "/run"])
        assert not found.stdout
    far.forge.ok("shutdown", "stay")
    here = subprocess.run(["grep", "-rlF", "--", SECRET, str(far.forge.home)], capture_output=True, text=True)
    assert not here.stdout


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
        return True
    except OSError:
        return False


def test_what_ranks_say_of_secrets_in_their_failure_is_hidden(far: Far) -> None:
    far.forge.env["TOKEN"] = SECRET
    far.forge.write("fail.py", "import os\nraise ValueError(os.environ['TOKEN'])\n")
    spec = f"hosts: {far.hosts('host1')}\nsecrets: [TOKEN]\nscripts: {{fail: {{run: fail.py, preload: []}}}}"
    done = far.forge.run("launch", far.forge.spec(spec))
    assert done.returncode == 1
    assert "ValueError: ***" in done.stderr
    assert SECRET not in done.stderr
