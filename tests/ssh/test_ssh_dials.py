"""Dials that meet what hosts are like: talkative logins, interpreters that will not do, hosts that are not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.transport.destination import Destination
from forgectl.transport.remote import SshWay
from forgectl.transport.ssh import dial
from tests.conftest import PROGRAMS, until
from tests.lab.host import HOME
from tests.process.other_user import NOBODY
from tests.ssh.conftest import Far

TELL = "scripts: {tell: {run: tell.py, preload: []}}"


def launched(far: Far, *hosts: str) -> tuple[int, str]:
    """Exit code and stderr of a launch on hosts with their own ideas of python."""
    spec = f"hosts: [{', '.join(hosts)}]\nworkdir: {PROGRAMS}\nsync: none\n{TELL}"
    done = far.forge.run("launch", far.forge.spec(spec))
    return done.returncode, done.stderr


def program(far: Far, name: str, text: str) -> Path:
    """A program that all hosts see."""
    path = far.lab.shared / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_login_scripts_that_print_do_no_harm(far: Far) -> None:
    script = far.lab.path("host1", f"{HOME}/.bashrc")
    script.write_text("echo Welcome to host1; echo forgectl-relay is not this; printf 'no newline at the end'\n")
    try:
        out = far.forge.ok("launch", far.forge.spec(far.spec(TELL, "host1")))
        assert "tell/0@host1 │" in out
    finally:
        script.unlink()


def test_a_login_that_is_turned_away_is_quoted(far: Far) -> None:
    script = far.lab.path("host1", f"{HOME}/.bashrc")
    script.write_text("echo this account is closed; exit 3\n")
    try:
        code, err = launched(far, f"{{name: host1, python: {sys.executable}}}")
    finally:
        script.unlink()
    assert code == 69
    assert "host host1: forgectl's relay could not start there: this account is closed" in err


def test_every_host_that_cannot_be_used_is_named_at_once(far: Far) -> None:
    code, err = launched(far, "stranger", "denied", "refusing", "host1", f"{{name: host2, python: {sys.executable}}}")
    assert code == 77
    for words in ("4 hosts cannot be used", "host stranger: ssh refused", "host denied: ssh refused", "host refusing"):
        assert words in err
    assert "host host1: /usr/bin/python3 lacks psutil" in err
    assert "host2" not in err
    assert not far.forge.runs()


@pytest.mark.parametrize(("name", "code"), [("stranger", 77), ("changed", 77), ("denied", 77), ("refusing", 69)])
def test_each_refusal_has_its_exit_code(far: Far, name: str, code: int) -> None:
    assert launched(far, name)[0] == code


def test_an_old_python_is_told_by_its_version(far: Far) -> None:
    old = f'exec {sys.executable} -c "import sys; sys.version_info = (3, 6, 9); exec(sys.argv[1])" "$2"\n'
    code, err = launched(far, f"{{name: host1, python: {program(far, 'old-python', f'#!/bin/sh{os.linesep}{old}')}}}")
    assert code == 69
    assert "is Python 3.6.9; forgectl needs 3.10 or newer" in err


def test_a_python_in_the_home_of_the_host(far: Far) -> None:
    link = far.lab.path("host1", f"{HOME}/my python")
    link.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    try:
        spec = f"hosts: [{{name: host1, python: '~/my python'}}]\nworkdir: {PROGRAMS}\nsync: none\n{TELL}"
        assert "tell/0@host1 │" in far.forge.ok("launch", far.forge.spec(spec))
    finally:
        link.unlink()


def test_what_is_no_interpreter_is_said_to_be_none(far: Far) -> None:
    for python, words in (
        ("/nowhere/python", "no such python"),
        ("/etc/passwd", "cannot run its python"),
        ("/bin/true", ""),
    ):
        code, err = launched(far, f"{{name: host1, python: {python}}}")
        assert code == 69, err
        assert "host host1: " in err
        assert words in err


def test_ssh_itself_may_be_missing_or_odd(far: Far) -> None:
    for ssh, words in (
        ("/no/ssh", "cannot run '/no/ssh'"),
        ("sh -c 'echo no such thing >&2; exit 255' --", "no such thing"),
    ):
        far.forge.env["FORGECTL_SSH"] = ssh
        code, err = launched(far, "host1")
        assert code == 69, err
        assert words in err
    far.forge.env["FORGECTL_SSH"] = "ssh 'unclosed"
    assert launched(far, "host1")[0] == 64


@contextlib.contextmanager
def taken(far: Far, *names: str, owner: int) -> Iterator[None]:
    """Folders of host1 that somebody has made before forgectl did, open to all."""
    far.lab.wipe("host1")
    folders = [far.lab.path("host1", name) for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        os.chown(folder, owner, owner)
    try:
        yield
        for folder in folders:
            assert list(folder.iterdir()) == []
    finally:
        for folder in folders:
            shutil.rmtree(folder)


FIRST, SECOND = "/var/tmp/forgectl-0", f"{HOME}/.cache/forgectl"


def test_a_folder_that_is_open_to_others_is_not_used(far: Far) -> None:
    with taken(far, FIRST, owner=0):
        code, err = launched(far, f"{{name: host1, python: {sys.executable}}}")
    assert code == 69
    assert f"cannot keep files there: {FIRST} must be a folder of yours with mode 0700: others may use it" in err
    assert "make it private (chmod 700), or name another folder of yours by `root:` of the host" in err


def test_a_host_where_another_user_took_the_folder_is_used_all_the_same(far: Far) -> None:
    second = far.lab.path("host1", SECOND)
    try:
        with taken(far, FIRST, owner=NOBODY):
            out = far.forge.ok("launch", far.forge.spec(far.spec(TELL, "host1")))
            assert "tell/0@host1 │" in out
            assert {"code", "runs"} <= {path.name for path in second.iterdir()}
    finally:
        shutil.rmtree(second)


def test_a_host_where_both_folders_are_taken_says_whose_they_are(far: Far) -> None:
    with taken(far, FIRST, SECOND, owner=NOBODY):
        code, err = launched(far, f"{{name: host1, python: {sys.executable}}}")
        assert code == 69
        for folder in (FIRST, SECOND):
            assert f"{folder} must be a folder of yours with mode 0700: it belongs to nobody (uid {NOBODY})" in err
        assert "have its owner or root remove it, or name another folder of yours by `root:` of the host" in err


@pytest.mark.parametrize("root", ["~/own/forgectl", "/var/tmp/own"])
def test_the_folder_that_a_spec_names_is_used_and_no_other(far: Far, root: str) -> None:
    folder = far.lab.path("host1", root.replace("~", HOME))
    hosts = f"[{{name: host1, python: {sys.executable}, root: {root}}}]"
    far.forge.write("tell.py", (PROGRAMS / "tell.py").read_text())
    try:
        with taken(far, FIRST, SECOND, owner=NOBODY):
            out = far.forge.ok("launch", far.forge.spec(f"hosts: {hosts}\n{TELL}"))
            assert "tell/0@host1 │" in out
            assert {"code", "runs", "work"} <= {path.name for path in folder.iterdir()}
            far.forge.ok("check", far.forge.folder / "spec.yaml")
        folder.chmod(0o755)
        code, err = launched(far, f"{{name: host1, python: {sys.executable}, root: {root}}}")
        assert code == 69
        assert f"{folder.name} must be a folder of yours with mode 0700: others may use it (mode 0755)" in err
    finally:
        shutil.rmtree(folder)


def test_a_connection_that_is_lost_before_its_first_use_is_replaced(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGECTL_SSH", far.lab.ssh)
    to = Destination("host1", "host1", sys.executable)
    dialled = dial(to)
    way = SshWay(to, "/var/tmp/no/agent", dialled)
    far.lab.kill_sessions("host1")
    assert asyncio.run(way.connect()) is None
    way.close()


def test_a_full_disk_is_told_with_what_to_do(far: Far) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/tmp"]
    far.lab.run("host1", mount, check=True)
    try:
        code, err = launched(far, f"{{name: host1, python: {sys.executable}}}")
    finally:
        far.lab.run("host1", ["umount", "/var/tmp"], check=True)
    assert code == 69
    assert "host host1: cannot keep files there: No space left on device\n  hint: forgectl keeps code" in err


def test_without_a_shared_file_system_sync_none_is_an_error(far: Far) -> None:
    far.forge.write("tell.py", "")
    spec = f"hosts: {far.hosts('host1', 'host2')}\nsync: none\n{TELL}"
    done = far.forge.run("launch", far.forge.spec(spec))
    assert done.returncode == 66
    assert f"host host1: no workdir {far.forge.folder}" in done.stderr
    assert f"host host2: no workdir {far.forge.folder}" in done.stderr


def test_a_wrong_address_is_an_error_in_seconds(far: Far) -> None:
    hosts = (
        f"[{{name: host1, python: {sys.executable}, address: 203.0.113.9}}, {{name: host2, python: {sys.executable}}}]"
    )
    body = "scripts: {meet: {run: reduce.py once, procs: 2, hosts: 2}}"
    spec = f"hosts: {hosts}\nworkdir: {PROGRAMS}\nsync: none\n{body}"
    done = far.forge.run("launch", far.forge.spec(spec))
    assert done.returncode == 69
    assert "203.0.113.9 is not an address of host1" in done.stderr
    assert not far.forge.runs()


def test_hosts_that_do_not_reach_each_other_are_told_before_ranks_wait(far: Far) -> None:
    far.lab.drop("host2", "out", "host1", dials=True)
    body = "scripts: {meet: {run: reduce.py once, procs: 2, hosts: 2}}"
    done = far.forge.run("launch", far.forge.spec(far.spec(body, "host1", "host2")))
    assert done.returncode == 69
    assert f"host2 does not reach it at {far.lab.address('host1')}: no answer within" in done.stderr
    assert not far.forge.runs()


def test_a_host_that_accepts_and_says_nothing_is_dialled_once(far: Far) -> None:
    far.lab.stop_sshd("host3")
    dials = far.lab.shared / "dials"
    far.lab.popen("host3", [sys.executable, "-c", MUTE, str(dials)])
    until(lambda: dials.exists() and dials.read_text(), "a listener in the place of sshd")
    try:
        code, err = launched(far, "host3")
    finally:
        mute, *told = dials.read_text().splitlines()
        far.lab.kill("host3", int(mute))
    assert code == 69
    assert "forgectl: no answer yet from host3" in err
    assert "host host3: ssh cannot reach host3: Connection timed out during banner exchange" in err
    assert told == ["dialled"]


MUTE = """
import os, pathlib, socket, sys
door, kept = socket.create_server(("0.0.0.0", 22)), []
with pathlib.Path(sys.argv[1]).open("w", buffering=1) as dials:
    print(os.getpid(), file=dials)
    while kept.append(door.accept()) is None:
        print("dialled", file=dials)
"""
