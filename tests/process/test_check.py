"""`forgectl check` on this machine: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import sys

from tests.conftest import Forge

TWO = "hosts: [local, {name: sim1, local: true}]\nscripts: {x: {command: 'true', procs: 2, hosts: 2}}\n"


def test_hosts_that_are_alike_are_told_once(forge: Forge) -> None:
    text = forge.ok("check", forge.spec(TWO))
    version = ".".join(map(str, sys.version_info[:3]))
    assert text.startswith(f"on all 2 hosts: python {version}, ")
    assert "FACT" not in text
    assert text.splitlines()[-1].startswith("ready: 2 hosts")
    assert not forge.runs()


ONE = "hosts: [{name: local, gpus: 1}]\nscripts: {x: {run: PROGRAMS/stay.py, with_gpus: true, preload: []}}\n"


def test_a_plan_that_does_not_fit_is_an_error_at_its_place(forge: Forge) -> None:
    done = forge.run("check", forge.spec(ONE.replace("x: {", "x: {procs: 2, ")))
    assert done.returncode == 65
    assert "error  " in done.stdout
    assert "spec.yaml:2:22: scripts.x.procs: wants 2 GPUs, but local has 1 GPU" in done.stdout


def test_gpus_that_are_taken_are_told_with_their_holder(forge: Forge) -> None:
    spec = forge.spec(ONE)
    assert "GPUs 1 × declared, " in forge.ok("check", spec)
    run = forge.launch(ONE)
    done = forge.run("check", spec, "--json")
    assert done.returncode == 75
    findings = [(f["severity"], f["message"]) for f in json.loads(done.stdout)["findings"] if f["severity"] != "note"]
    assert (
        findings[0][0] == "error"
        and f"not enough free GPUs: scripts.x wants 1 GPU. Taken: GPU 0 of local by run {run}" in (findings[0][1])
    )
    assert findings[1][1].startswith(f"GPU 0 taken by run {run}")


def test_an_interpreter_that_is_not_there_is_an_error_of_its_host(forge: Forge) -> None:
    spec = forge.spec(TWO.replace("'true'", "'true', python: /no/such"))
    done = forge.run("check", spec, "--json")
    assert done.returncode == 69
    (error,) = (f for f in json.loads(done.stdout)["findings"] if f["severity"] == "error")
    assert (error["hosts"], error["message"]) == (["local", "sim1"], "cannot run /no/such: No such file or directory")


def test_a_bad_spec_is_told_as_everywhere(forge: Forge) -> None:
    done = forge.run("check", forge.spec("scripts: {x: {comand: 'true'}}\n"))
    assert (done.returncode, done.stdout) == (65, "")
    assert "unknown key; did you mean 'command'?" in done.stderr


def test_hosts_that_ssh_cannot_reach_are_told_and_the_others_are_examined(forge: Forge) -> None:
    forge.env["FORGECTL_SSH"] = forge.write("ssh", "#!/bin/sh\necho 'ssh: no route' >&2\nexit 255\n").as_posix()
    os.chmod(forge.env["FORGECTL_SSH"], 0o755)
    done = forge.run("check", forge.spec(TWO.replace("[local", "[gpu01, gpu02, local").replace("hosts: 2", "hosts: 4")))
    assert done.returncode == 65  # 2 processes on 4 hosts
    done = forge.run("check", forge.spec(TWO.replace("[local", "[gpu01, gpu02, local")))
    assert done.returncode == 69
    assert "on all 2 hosts that were reached: " in done.stdout
    assert "error  gpu01: ssh cannot reach gpu01: ssh: no route" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("not ready: 2 errors")
