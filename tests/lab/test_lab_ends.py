"""The lab leaves nothing, whatever ends it, and says what a test left there and what it lacks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import until
from tests.lab import fixtures
from tests.lab.dialling import dials, ssh
from tests.lab.host import PROJECT
from tests.lab.lab import Lab

MAKER = """
import signal, time
from tests.lab.lab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a foreground command, wherever the tests run
with Lab(2) as lab:
    print(lab.interface, lab.folder, flush=True)
    time.sleep(1000)
"""


# ---------------------------------------------------------------- what is left


def test_left_names_and_ends_what_a_test_left(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(2)
    lab.cut("host1")
    lab.drop("host2", "in")
    lab.stop_sshd("host2")
    assert lab.left(2) == {}
    assert all(ssh(lab, name, "true").returncode == 0 for name in lab.names)
    ssh(lab, "host1", "FORGE_RUN_ID=r setsid sleep 1001 >/dev/null 2>&1 </dev/null &")
    ssh(lab, "host2", "setsid sleep 1002 >/dev/null 2>&1 </dev/null &")
    left = lab.left(0.1)
    assert {name: list(found.values()) for name, found in left.items()} == {
        "host1": ["sleep 1001"],
        "host2": ["sleep 1002"],
    }
    assert lab.left(2) == {}


def traces(folder: Path) -> list[str]:
    """What is left of a lab on this machine."""
    found = [str(folder)] if folder.exists() else []
    found += [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"/{folder.name}-" in path]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.name.encode() in (process / "cmdline").read_bytes():
                found.append(str(process))
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if folder.name in line]
    return found


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_close_leaves_nothing() -> None:
    fixtures.require_lab()
    with Lab(2) as lab:
        interface, subnet = lab.interface, lab.gateway.rpartition(".")[0]
        lab.popen("host1", ["setsid", "sleep", "1000"])
        lab.drop("host2", "in")
        lab.cut("host1")
        assert traces(lab.folder) and interface in interfaces()
    assert traces(lab.folder) == []
    assert interface not in interfaces()
    assert subnet not in subprocess.run(["ip", "route"], capture_output=True, text=True).stdout
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert "inet lab" not in tables


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_death_of_its_maker_leaves_nothing(number: int) -> None:
    fixtures.require_lab()
    with subprocess.Popen(
        [sys.executable, "-c", MAKER], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as maker:
        try:
            assert maker.stdout is not None
            interface, folder = maker.stdout.readline().split()
            assert traces(Path(folder)) and interface in interfaces()
        finally:
            maker.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                maker.wait(timeout=30)
            maker.kill()
    until(lambda: not traces(Path(folder)) and interface not in interfaces(), "the end of the lab")


def test_a_lab_that_cannot_be_finished_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fixtures.require_lab()
    made: list[Lab] = []

    def fail(lab: Lab, _: object) -> None:
        made.append(lab)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lab, "_decorate", fail)
    with pytest.raises(KeyboardInterrupt):
        Lab(2)
    assert traces(made[0].folder) == [] and made[0].interface not in interfaces()


def test_labs_side_by_side_do_not_meet(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    other = make_lab(1)
    assert other.gateway != lab.gateway
    assert not dials(lab, "host1", other.address("host1"), 22, 0.3)
    assert ssh(other, "host1", "cat /proc/sys/kernel/random/boot_id").stdout.strip() == other.boot_id("host1")


# ---------------------------------------------------------------- where it cannot be


def test_where_no_lab_can_be_it_skips_loudly_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixtures, "obstacle", lambda: "the lab needs a moon")
    monkeypatch.delenv("CI", raising=False)
    with pytest.warns(UserWarning, match="SKIPPED: the lab needs a moon"), pytest.raises(pytest.skip.Exception):
        fixtures.require_lab()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="the lab needs a moon"):
        fixtures.require_lab()


def test_obstacles_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    look = fixtures.obstacle.__wrapped__
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (look() or "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(fixtures, "PROGRAMS", ("sh", "no-such-program"))
    assert "needs no-such-program: run tests/lab/install.sh" in (look() or "")


@pytest.mark.parametrize(("uid", "fails", "installs"), [(0, 0, True), (0, 1, True), (1000, 0, False)])
def test_what_is_missing_is_installed_by_root_alone(tmp_path: Path, uid: int, fails: int, installs: bool) -> None:
    """With programs that are not the real ones, so that nothing is installed; it never fails a build."""
    for name, body in {"id": f"echo {uid}", "apt-get": f'echo "$@" >>{tmp_path}/called; exit {fails}'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("rm", "chmod"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    script = Path(__file__).with_name("install.sh")
    environment = {"PATH": str(tmp_path), "LAB_POLICY": f"{tmp_path}/policy-rc.d"}
    result = subprocess.run(["/bin/sh", str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    called = (tmp_path / "called").read_text().splitlines() if (tmp_path / "called").exists() else []
    assert any("install" in line and "openssh-server" in line for line in called) == installs
    assert ("could not" in result.stdout) == bool(fails)
    assert not (tmp_path / "policy-rc.d").exists()
