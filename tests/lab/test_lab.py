"""The lab itself: its hosts are machines of their own, its faults are faults, and it leaves nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import until
from tests.lab.dialling import dials, ssh
from tests.lab.lab import Lab

LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
server.accept()
"""
COUNTER = """
table inet t {
    counter seen { }
    chain c {
        type filter hook prerouting priority 0;
        ip saddr %s counter name "seen"
    }
}
"""


def reachable(address: str, timeout: float = 0.3) -> bool:
    """Whether the launching machine reaches an sshd, through to its first bytes."""
    with contextlib.suppress(OSError), socket.create_connection((address, 22), timeout=timeout) as dialled:
        dialled.settimeout(timeout)
        return dialled.recv(4) == b"SSH-"
    return False


@contextlib.contextmanager
def session(lab: Lab, name: str, command: str = "echo up; exec cat") -> Iterator[subprocess.Popen[str]]:
    """An ssh connection whose command runs."""
    argv = [*shlex.split(lab.ssh), "-o", "BatchMode=yes", name, command]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        try:
            assert p.stdout is not None and p.stdout.readline() == "up\n"
            yield p
        finally:
            p.kill()


# ---------------------------------------------------------------- the network


def test_hosts_reach_each_other_and_the_launching_machine(lab: Lab) -> None:
    with socket.create_server((lab.gateway, 0)) as server:
        for name in lab.names:
            assert dials(lab, name, lab.gateway, server.getsockname()[1])
            for other in lab.names:
                assert dials(lab, name, lab.address(other), 22)


def test_a_cut_host_is_alone_until_mended(lab: Lab) -> None:
    lab.cut("host2")
    assert not reachable(lab.address("host2"))
    assert not dials(lab, "host2", lab.address("host1"), 22, 0.3)
    assert reachable(lab.address("host1"))
    lab.mend("host2")
    assert reachable(lab.address("host2"), 5)


def test_a_cut_launching_machine_leaves_hosts_to_each_other(lab: Lab) -> None:
    lab.cut(lab.launcher)
    assert not any(reachable(lab.address(name)) for name in lab.names)
    assert dials(lab, "host1", lab.address("host2"), 22)
    lab.mend(lab.launcher)
    assert reachable(lab.address("host1"), 5)


def test_a_connection_outlives_a_short_cut(lab: Lab) -> None:
    with session(lab, "host1") as connection:
        lab.cut("host1")
        assert connection.stdin is not None and connection.stdout is not None
        connection.stdin.write("said while it was cut\n")
        connection.stdin.flush()
        assert not reachable(lab.address("host1"))
        lab.mend("host1")
        assert connection.stdout.readline() == "said while it was cut\n"


@pytest.mark.parametrize("direction", ["in", "out"])
def test_drops_are_one_way(lab: Lab, direction: str) -> None:
    lab.drop("host1", direction)
    assert not reachable(lab.address("host1"))
    table = COUNTER % lab.address("host1")
    lab.run("host2", ["nft", "-f", "-"], input=table, check=True)
    dials(lab, "host1", lab.address("host2"), 22, 0.3)
    seen = lab.run("host2", ["nft", "list", "counters", "table", "inet", "t"], check=True).stdout
    lab.run("host2", ["nft", "delete", "table", "inet", "t"], check=True)
    assert ("packets 0 " in seen) == (direction == "out"), seen
    lab.undrop("host1")
    assert reachable(lab.address("host1"), 5)


def test_drops_of_one_peer_and_of_dials_alone(lab: Lab) -> None:
    lab.drop("host1", "in", "host2")
    assert not dials(lab, "host2", lab.address("host1"), 22, 0.3)
    assert dials(lab, "host3", lab.address("host1"), 22)
    lab.undrop("host1")
    lab.drop("host1", "out", lab.launcher, dials=True)
    with socket.create_server((lab.gateway, 0)) as server:
        assert not dials(lab, "host1", lab.gateway, server.getsockname()[1], 0.3)
    assert ssh(lab, "host1", "true").returncode == 0
    assert dials(lab, "host1", lab.address("host2"), 22)


# ---------------------------------------------------------------- ssh


def test_ssh_works_by_every_name(lab: Lab) -> None:
    said = {name: ssh(lab, name, "hostname") for name in (*lab.names, "twin")}
    assert {name: r.stdout.strip() for name, r in said.items()} == {n: n for n in lab.names} | {"twin": "host1"}
    assert all(r.stderr == "" for r in said.values())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stranger", "Host key verification failed"),
        ("changed", "REMOTE HOST IDENTIFICATION HAS CHANGED"),
        ("denied", "Permission denied (publickey)"),
        ("silent", "Connection timed out"),
        ("refusing", "Connection refused"),
    ],
)
def test_ssh_fails_by_name(lab: Lab, name: str, says: str) -> None:
    result = ssh(lab, name, "true", timeout=1)
    assert (result.returncode, result.stdout) == (255, "")
    assert says in result.stderr


def test_sshd_stops_and_starts_and_keeps_its_sessions(lab: Lab) -> None:
    with session(lab, "host1") as connection:
        lab.stop_sshd("host1")
        assert "Connection refused" in ssh(lab, "host1", "true").stderr
        assert connection.poll() is None and lab.sshd_sessions("host1")
        lab.start_sshd("host1")
        assert ssh(lab, "host1", "true").returncode == 0


def test_killed_sessions_end_their_connections(lab: Lab) -> None:
    with session(lab, "host1") as connection, session(lab, "host2") as other:
        assert len(lab.sshd_sessions("host1")) == 1
        lab.kill_sessions("host1")
        assert connection.wait(timeout=10) == 255
        assert other.poll() is None
        assert ssh(lab, "host1", "true").returncode == 0


def test_max_startups(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(1, max_startups="2")
    held = [socket.create_connection((lab.address("host1"), 22)) for _ in range(2)]
    assert all(s.recv(4) == b"SSH-" for s in held)
    assert not reachable(lab.address("host1"), 5)
    for s in held:
        s.close()
    until(lambda: ssh(lab, "host1", "true").returncode == 0, "a free place")


# ---------------------------------------------------------------- machines of their own


def test_what_hosts_have_for_themselves(lab: Lab) -> None:
    for name in lab.names:
        script = (
            'touch /tmp/"$0" /var/tmp/"$0" /run/"$0" /dev/shm/"$0" ~/"$0"; echo ~; hostname; ls /proc | grep -c ^[0-9]'
        )
        home, hostname, processes = lab.run(name, ["sh", "-c", script, f"own-{name}"], check=True).stdout.split()
        assert (home, hostname) == (os.path.expanduser("~root"), name)
        assert int(processes) < 10
    for name in lab.names:
        places = ("/tmp", "/var/tmp", "/run", "/dev/shm", home)
        assert [lab.files(name, f"{place}/own-*") for place in places] == [[f"{place}/own-{name}"] for place in places]
    assert not [place for place in places if list(Path(place).glob("own-*"))]
    ids = {lab.boot_id(name) for name in lab.names} | {Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    assert len(ids) == len(lab.names) + 1
    assert ssh(lab, "host1", "cat /proc/sys/kernel/random/boot_id").stdout.strip() == lab.boot_id("host1")
    for name in lab.names:
        lab.run(name, ["sh", "-c", 'rm /run/"$0" ~/"$0"', f"own-{name}"], check=True)
        lab.wipe(name)
        assert not [lab.files(name, f"{place}/own-*") for place in places if lab.files(name, f"{place}/own-*")]


def test_hosts_run_the_interpreter_of_the_tests(lab: Lab) -> None:
    result = ssh(lab, "host1", shlex.join([sys.executable, "-c", "import psutil; print(psutil.Process().pid)"]))
    assert result.returncode == 0, result.stderr
    (lab.shared / "word").write_text("shared")
    assert ssh(lab, "host2", f"cat {shlex.quote(str(lab.shared / 'word'))}").stdout == "shared"


def test_processes_and_listeners_are_seen_as_the_host_sees_them(lab: Lab) -> None:
    background = lab.popen(
        "host1", [sys.executable, "-c", LISTEN, lab.address("host1")], env={"MARK": "one"}, stdout=subprocess.PIPE
    )
    assert background.stdout is not None
    port = int(background.stdout.readline())
    assert lab.listening("host1") == {(lab.address("host1"), port)}
    assert lab.listening("host2") == set()
    ((pid, command),) = lab.processes("host1", "MARK").items()
    assert lab.processes("host1", "MARK=one") == {pid: command}
    assert lab.processes("host1", "MARK=on") == lab.processes("host1", "MAR") == lab.processes("host2", "MARK") == {}
    assert pid < 1000 and "create_server" in command
    lab.kill("host1", pid)
    background.communicate()
    assert lab.processes("host1", "MARK") == {} and lab.listening("host1") == set()


def test_cgroups_of_one_host_are_not_seen_on_another(lab: Lab) -> None:
    mount = lab["host1"].cgroup_mount
    if not mount:
        pytest.skip("this machine has no cgroup v2 that we may write to")
    lab.run("host1", ["mkdir", f"{mount}/mine"], check=True)
    assert ssh(lab, "host1", "cat /proc/self/cgroup").stdout.splitlines()[-1] == "0::/"
    assert lab.run("host2", ["ls", f"{mount}/mine"]).returncode != 0
    lab.run("host1", ["rmdir", f"{mount}/mine"], check=True)


def test_a_shared_home_is_the_only_thing_shared(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(2, shared_home=True, aliases={"other": "host2"}, named_by_dns=True, decoy=True)
    assert ssh(lab, "host1", "echo hello > ~/note; touch /var/tmp/note").returncode == 0
    assert ssh(lab, "other", "cat ~/note; ls /var/tmp").stdout == "hello\n"
    assert lab.run("host1", ["getent", "hosts", "host1", "host2"]).stdout.split()[::2] == [
        lab.address("host1"),
        lab.address("host2"),
    ]
    assert all("172.17.0.1/16" in lab.run(name, ["ip", "-br", "addr"]).stdout for name in lab.names)


# ---------------------------------------------------------------- power


@pytest.mark.parametrize("silently", [False, True])
def test_reboot(lab: Lab, silently: bool) -> None:
    before = lab.boot_id("host2")
    lab.run("host2", ["touch", "/tmp/gone", "/run/gone", "/dev/shm/gone", "/var/tmp/kept"], check=True)
    lab.popen("host2", ["setsid", "sleep", "1000"], env={"FORGE_RUN_ID": "doomed"})
    until(lambda: lab.processes("host2"), "a process")
    with session(lab, "host2") as connection:
        lab.halt("host2", silently=silently)
        if silently:
            assert connection.poll() is None
        else:
            assert connection.wait(timeout=10) == 255
        assert not reachable(lab.address("host2"))
        lab.boot("host2")
    assert lab.boot_id("host2") != before
    assert lab.processes("host2") == {}
    assert lab.files("host2", "/*/gone") == lab.files("host2", "/dev/shm/gone") == []
    assert lab.files("host2", "/var/tmp/kept") == ["/var/tmp/kept"]
    assert ssh(lab, "host2", "hostname").stdout == "host2\n"
    lab.wipe("host2")
