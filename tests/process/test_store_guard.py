"""The rendezvous store on the loopback address: other users of the machine get nothing from it, and disturb nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from tests.conftest import PROGRAMS, Forge, listening_ports, until
from tests.process.other_user import another_user, as_another_user, as_user

THIRD = 65533
"""A user who is neither root nor nobody."""
FLOOD = 3000
RAW = [f"raw/{how}" for how in ("stay", "half", "reset", "close")]
"""What intruder.py tries to set besides by torch's own client."""
MEET = "scripts: {meet: {run: PROGRAMS/meet_at_store.py, procs: 3}}"
SERVE = (
    "import os, sys; from forgectl.agent.forkserver.rendezvous import serve_store;"
    "serve_store(os.getppid(), int(sys.argv[1]), int(sys.argv[2]), '127.0.0.1', 1)"
)
READ = (
    "import sys; from torch.distributed import TCPStore; print(TCPStore('127.0.0.1', int(sys.argv[1])).get('secret'))"
)


def turns(forge: Forge) -> int:
    """How often the ranks have met."""
    path = forge.folder / "turns"
    return int(path.read_text()) if path.exists() else 0


def until_they_met_again(forge: Forge) -> None:
    before = turns(forge)
    until(lambda: turns(forge) > before + 10, "the ranks to meet again")


def port_of_store(forge: Forge, run: str) -> int:
    """The port of the only listener of the process that is the store."""
    found = set().union(*(listening_ports({p}) for p in forge.roles(run)["forkserver"]))
    [(address, port)] = found
    assert address == "127.0.0.1"
    return int(port)


def end_well(forge: Forge, run: str) -> None:
    (forge.folder / "end").touch()
    document = forge.until_ended(run)
    assert document["exit_code"] == 0, document
    assert forge.ok("logs", f"{run}/meet").count("nobody else was here") == 3


def client(port: int) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))


@contextlib.contextmanager
def a_store(user: int = 0, *, without: str = "") -> Iterator[tuple[int, str]]:
    """The port of a store that is a process of `user`, and why it is not guarded."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    ours, theirs = socket.socketpair()
    fds = [listener.fileno(), theirs.fileno()]
    sandbox = [sys.executable, str(PROGRAMS / "without.py"), without] if without else []
    argv = [*sandbox, *as_user(user), sys.executable, "-c", SERVE, *map(str, fds)]
    process = subprocess.Popen(argv, pass_fds=fds)
    port = listener.getsockname()[1]
    listener.close()  # it is the store's: nobody waits for one that has died
    theirs.close()
    try:
        with ours:
            why = ours.recv(1000).decode()
        yield port, why
    finally:
        process.kill()
        process.wait()


def test_other_users_read_write_and_delete_nothing_in_the_store_of_a_run(forge: Forge) -> None:
    """Nor when they are gone before anybody looks: to the kernel such a connection is root's, who owns the run."""
    run = forge.launch(MEET)
    until_they_met_again(forge)
    assert as_another_user("store", port_of_store(forge, run)) in ("DistNetworkError", "DistStoreError")
    until_they_met_again(forge)
    assert not forge.mesh(run, "meet")["notices"]
    end_well(forge, run)


def test_a_flood_of_other_users_is_turned_away_and_ranks_go_on(forge: Forge) -> None:
    run = forge.launch(MEET)
    until_they_met_again(forge)
    port = port_of_store(forge, run)
    with another_user("fill", port, FLOOD) as flood:
        until_they_met_again(forge)
        client(port).set("during", "x")  # whoever is let in may still come
        assert flood.stdout
        assert flood.stdout.readline() == f"{FLOOD}\n", flood.communicate()
        until_they_met_again(forge)
        assert client(port).get("during") == b"x"
    end_well(forge, run)


def test_a_store_that_is_started_by_the_first_dial_is_guarded_from_then_on(forge: Forge) -> None:
    """Another user's dial starts it, and gets nothing from it."""
    run = forge.launch("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}")
    until(lambda: "here" in forge.ok("logs", f"{run}/stay"), "the rank")
    [(_, port)] = set().union(*(listening_ports({p}) for p in forge.roles(run)["agent"]))
    assert as_another_user("store", port) in ("DistNetworkError", "DistStoreError")
    assert port_of_store(forge, run) == port
    own = client(port)
    own.set("ours", "x")
    assert not any(own.check([key]) for key in RAW)


@pytest.mark.parametrize("without", ["", "netlink"])
def test_the_owner_of_a_store_and_root_are_let_in_and_others_not(without: str) -> None:
    """By /proc alone where there is no netlink."""
    with a_store(THIRD, without=without) as (port, why):
        assert why == ""
        ours = client(port)
        ours.set("secret", "hunter2")
        argv = [*as_user(THIRD), sys.executable, "-c", READ, str(port)]
        owner = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert owner.stdout == "b'hunter2'\n", owner.stderr
        assert as_another_user("store", port) in ("DistNetworkError", "DistStoreError")
        assert not any(ours.check([key]) for key in RAW)


def test_what_the_intruder_sends_would_work_if_it_were_let_in() -> None:
    with a_store(without="seccomp") as (port, why):
        assert why == "seccomp: Operation not permitted"
        ours = client(port)
        ours.set("secret", "hunter2")
        ours.set("ours", "x")
        assert as_another_user("store", port) == "hunter2"
        assert [key for key in ("client", *RAW) if not ours.check([key])] == []
        assert not ours.check(["ours"])


def test_large_values_and_many_clients() -> None:
    value = os.urandom(1 << 23)  # the most that torch's store takes
    with a_store() as (port, why):
        assert why == ""
        clients = [client(port) for _ in range(40)]
        clients[0].set("large", value)
        for other in clients[1:4]:
            assert other.get("large") == value
        for number, other in enumerate(clients):
            assert other.add("count", 1) == number + 1


def test_clients_that_die_in_the_middle_of_a_request_disturb_nobody() -> None:
    with a_store() as (port, _):
        ours = client(port)
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(b"\0\xce\xf7\x85\x3c\1" + (1 << 20).to_bytes(8, "little") + b"half a key")
        ours.set("ours", "x")
        assert ours.get("ours") == b"x"


def test_where_the_kernel_lets_nobody_guard_it_the_run_goes_on_and_says_so_once(forge: Forge) -> None:
    spec = forge.spec(MEET)
    wrapper = [sys.executable, str(PROGRAMS / "without.py"), "seccomp"]
    launched = subprocess.run(
        [*wrapper, *forge.argv("launch", spec, "-d")],
        cwd=forge.folder,
        env=forge.env,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert launched.returncode == 0, launched.stderr
    run = launched.stdout.strip().splitlines()[-1]
    until_they_met_again(forge)
    said = "other users of host local can reach the rendezvous store of this mesh: seccomp: Operation not permitted"
    assert forge.mesh(run, "meet")["notices"] == [said]
    end_well(forge, run)
