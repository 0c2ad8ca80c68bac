"""Nobody on the network gets at actors' messages: tried by a peer in another network namespace, and from the host."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time

from forgectl.messages.keys import RunKeys
from tests.conftest import listening_ports, processes_of, until
from tests.ssh.conftest import Far

ACTORS = "actors: {counter: {class: far_players:Counter, hosts: [host1, host2], procs: 2, preload: []}}"


def test_a_stranger_on_the_network_is_refused_and_the_run_goes_on(far: Far) -> None:
    run = far.launch(ACTORS)
    keys = RunKeys.from_text((far.forge.run_dir(run) / "message-keys").read_text())
    [(address, port)] = {p for p in far.lab.listening("host1") if p[0] == far.lab.address("host1")} - stores(far, run)
    argv = [sys.executable, far.programs / "intruder.py", "net", address, port, keys.public("host1")]
    pipe = subprocess.PIPE
    peer = far.lab.popen("host3", argv, stdin=pipe, stdout=pipe)
    assert peer.stdout is not None
    found = json.loads(peer.stdout.readline())
    assert found == {"no key": "refused", "another key": "refused", "halves": 1000}
    assert json.loads(far.forge.ok("call", "counter", "add", "1", "--json")) == [1, 1]  # they are held open
    peer.communicate()
    assert json.loads(far.forge.ok("call", "counter", "add", "1", "--json")) == [2, 2]
    far.forge.ok("shutdown", "--run", run)


FEW = 1024
"""Descriptors of a process on a host, of which there are fewer than strangers."""


def test_more_strangers_than_descriptors_keep_nobody_out(far: Far) -> None:
    python = far.lab.shared / "few.sh"
    python.write_text(f'#!/bin/sh\nulimit -n {FEW}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    run = far.forge.launch(far.spec(ACTORS).replace(f"python: {sys.executable}", f"python: {python}"))
    call = functools.partial(far.forge.ok, "call", "counter", "add", "1", "--json")
    assert json.loads(call()) == [1, 1]
    [messenger] = [pid for pid, command in far.processes(run)["host1"].items() if " messenger " in command]

    def descriptors() -> int:
        return len(far.lab.run("host1", ["ls", f"/proc/{messenger}/fd"]).stdout.split())

    before = descriptors()
    [(address, port)] = {p for p in far.lab.listening("host1") if p[0] == far.lab.address("host1")} - stores(far, run)
    argv = [sys.executable, far.programs / "intruder.py", "flood", address, port, far.lab.address("host3")]
    flood = far.lab.popen("host3", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert flood.stdout is not None
    for turn in range(2, 5):
        made, _ = json.loads(flood.stdout.readline())
        assert json.loads(call()) == [turn, turn]
    made, ended = json.loads(flood.communicate()[0].splitlines()[-1])
    assert made > 3 * FEW and ended > FEW
    until(lambda: descriptors() <= before, f"{before} descriptors, now {descriptors()}")
    far.forge.ok("shutdown", "--run", run)


def test_only_stores_listen_on_the_launching_machine_and_there_on_the_loopback_address(far: Far) -> None:
    run = far.launch(ACTORS)
    far.forge.ok("call", "counter", "add", "1")
    namespace = os.readlink("/proc/self/ns/net")
    here = {pid for pid in processes_of(run) if os.readlink(f"/proc/{pid}/ns/net") == namespace}
    assert len(here) >= 3  # controller, agent, messenger
    assert listening_ports(here) <= {("127.0.0.1", port) for _, port in stores(far, run)}
    far.forge.ok("shutdown", "--run", run)


def stores(far: Far, run: str) -> set[tuple[str, int]]:
    """Where the rendezvous stores of a run listen on host1."""
    events = (far.forge.run_dir(run) / "events.jsonl").read_text().splitlines()
    opened = [e["what"]["port"] for e in map(json.loads, events) if e.get("what", {}).get("type") == "StoreOpened"]
    return {(far.lab.address("host1"), port) for port in opened}


def test_hosts_listen_for_messages_on_one_port_and_have_no_secret_on_disk(far: Far) -> None:
    began = time.time()
    run = far.launch(ACTORS)
    keys = RunKeys.from_text((far.forge.run_dir(run) / "message-keys").read_text())
    for name in ("host1", "host2"):
        assert len(far.lab.listening(name) - stores(far, run)) == 1
        secret = keys.secret(name)
        find = ["find", "/var/tmp", "/tmp", "/run", "/dev/shm", "-type", "f", "-newermt", f"@{int(began)}", "-print0"]
        found = far.lab.run(name, find, errors="surrogateescape").stdout.split("\0")
        written = [path for path in found if path]
        assert any("forgectl" in path for path in written)
        assert far.lab.run(name, ["grep", "-lF", secret, *written]).stdout == ""
        for command in far.processes(run)[name].values():
            assert secret not in command
        for pid in far.processes(run)[name]:
            assert secret.encode() not in far.lab.run(name, ["cat", f"/proc/{pid}/environ"]).stdout.encode()
    assert not [a for a, _ in far.lab.listening("host3")]
    far.forge.ok("shutdown", "--run", run)
    assert not (far.forge.run_dir(run) / "message-keys").exists()
