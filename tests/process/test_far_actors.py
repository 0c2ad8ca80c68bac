"""Actors over TLS between Monarch's workers and a driver, all on this machine's loopback address."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.controller.authority import Authority
from forgectl.protocol import Membership
from tests.conftest import listening_ports
from tests.far import Driver, FarActors, Worker

pytest.importorskip("monarch")


@pytest.fixture
def far() -> Iterator[FarActors]:
    folder = Path(tempfile.mkdtemp(prefix="forge-"))  # a short one: sockets are in it
    far = FarActors(folder)
    yield far
    far.close()
    shutil.rmtree(folder)


@pytest.fixture(params=["dialled back", "through a gateway"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def drive(far: FarActors, mode: str, gateway: Worker) -> Driver:
    """A driver that is ready."""
    return far.driver(gateway=gateway.url) if mode == "through a gateway" else far.driver(address="127.0.0.1")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until_gone(pid: int) -> None:
    """Wait for the end of a process that need not be a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 20)[0], f"{pid} is still there"
    finally:
        os.close(handle)


# ---------------------------------------------------------------- one worker


def dial(worker: Worker, trusts: str, shows: Membership | None, folder: Path) -> ssl.SSLSocket:
    """A connection to a worker after the handshake; raises ssl.SSLError where the other side refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=trusts)
    if shows is not None:
        (folder / "certificate").write_text(shows.certificate)
        (folder / "key").write_text(shows.key)
        context.load_cert_chain(folder / "certificate", folder / "key")
    plain = socket.create_connection(("127.0.0.1", worker.port), 20)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        secure.settimeout(1)
        try:
            secure.recv(1)  # a refusal comes after the client's side of the handshake (TLS 1.3)
        except TimeoutError:
            pass  # it waits for what an accepted client has to say
        return secure


def test_a_worker_listens_on_one_port_of_its_address_alone(far: FarActors) -> None:
    worker = far.worker()
    assert listening_ports({worker.pid}) == {("127.0.0.1", worker.port)}


def test_workers_of_one_address_have_ports_of_their_own(far: FarActors) -> None:
    assert len({far.worker().port for _ in range(3)}) == 3


def test_a_worker_accepts_its_run_s_certificate(far: FarActors, tmp_path: Path) -> None:
    identity = far.authority.issue("driver", [])
    assert dial(far.worker(), identity.authority, identity, tmp_path).version() in ("TLSv1.3", None)


def test_a_worker_refuses_whoever_has_no_certificate(far: FarActors, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        dial(far.worker(), far.authority.certificate, None, tmp_path)


def test_a_worker_refuses_another_run_s_certificate(far: FarActors, tmp_path: Path) -> None:
    stranger = Authority.new("far-actors").issue("driver", ["127.0.0.1"])
    with pytest.raises(ssl.SSLError, match=r"DECRYPT_ERROR|UNKNOWN_CA"):
        dial(far.worker(), far.authority.certificate, stranger, tmp_path)


def test_a_worker_dies_with_its_agent(far: FarActors) -> None:
    worker = far.worker()
    assert parent(worker.pid) == worker.agent.pid
    worker.agent.send_signal(signal.SIGKILL)
    until_gone(worker.pid)


def test_a_worker_that_cannot_listen_says_why(far: FarActors) -> None:
    _, said = far.ask(far.request("192.0.2.1", "/nowhere"))
    assert "192.0.2.1" in said["error"]
    assert said["error"].startswith("OSError")


def test_what_is_secret_is_on_no_command_line_and_in_no_environment(far: FarActors) -> None:
    request = far.request("127.0.0.1", tempfile.gettempdir())
    agent, said = far.ask(request)
    secret = "".join(request["key"].splitlines()[1:-1])[:40].encode()
    for pid in (agent.pid, said["pid"]):
        for file in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{file}").read_bytes()


# ---------------------------------------------------------------- meshes


def test_a_mesh_lies_on_hosts_as_it_is_told(far: FarActors, mode: str) -> None:
    """Rank by rank, unevenly, in any order, and on the driver's machine, too: one flat dimension."""
    one, two = far.worker(), far.worker()
    driver = drive(far, mode, one)
    places = [two, one, None, two, two]
    found = driver.ask("spawn", "m", [p and p.url for p in places])
    assert [rank for rank, _, _ in found] == [0, 1, 2, 3, 4]
    assert [parent(pid) for _, _, pid in found] == [p.pid if p else driver.pid for p in places]
    assert driver.ask("slice", "m", 3) == [found[3]]


def test_handles_go_from_host_to_host(far: FarActors, mode: str) -> None:
    one, two = far.worker(), far.worker()
    driver = drive(far, mode, one)
    meshes = {"away": [one.url, two.url], "far": [two.url], "near": [None, None]}
    found = {mesh: driver.ask("spawn", mesh, places) for mesh, places in meshes.items()}
    for asking in meshes:
        for asked in meshes.keys() - {asking}:
            assert driver.ask("call", asking, "ask", asked) == [found[asked]] * len(meshes[asking])


def test_a_far_rank_s_error_cuts_the_call_short(far: FarActors, mode: str) -> None:
    one, two = far.worker(), far.worker()
    driver = drive(far, mode, one)
    driver.ask("spawn", "m", [two.url, one.url])
    answer = driver.answer(driver.begin("call", "m", "first_raises"))
    assert answer["error"] == "LookupError"
    assert "nothing here" in answer["text"]


def test_ranks_do_not_know_who_their_host_is_to_others(far: FarActors, mode: str) -> None:
    one = far.worker()
    driver = drive(far, mode, one)
    driver.ask("spawn", "m", [one.url, None])
    assert driver.ask("call", "m", "secrets") == [[], []]


def test_a_driver_behind_a_gateway_listens_on_no_port(far: FarActors) -> None:
    driver = drive(far, "through a gateway", far.worker())
    assert listening_ports({driver.pid}) == set()


def test_a_driver_that_is_dialled_back_listens_on_its_address_alone(far: FarActors) -> None:
    driver = drive(far, "dialled back", far.worker())
    assert {address for address, _ in listening_ports({driver.pid})} == {"127.0.0.1"}


def test_a_gateway_that_is_not_there_is_said(far: FarActors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answer = far.begin_driver(gateway=f"tls://127.0.0.1:{port}").answer()
    assert answer["error"] == "UnreachableError"
    assert f"127.0.0.1:{port}" in answer["text"]


def test_a_dead_worker_takes_only_its_own_ranks(far: FarActors, mode: str) -> None:
    """Its ranks end with it; the rest answers, and new meshes come up on the others and on its successor."""
    one, two = far.worker(), far.worker()
    driver = drive(far, mode, one)
    both = driver.ask("spawn", "both", [one.url, two.url])
    other = driver.ask("spawn", "other", [one.url])
    os.kill(two.pid, signal.SIGKILL)
    until_gone(both[1][2])
    assert driver.ask("slice", "both", 0) == [both[0]]
    assert driver.ask("call", "other", "where") == other
    successor = far.worker()
    again = driver.ask("spawn", "both", [one.url, successor.url])
    assert parent(again[1][2]) == successor.pid


def test_ranks_elsewhere_are_told_of_the_end_of_a_mesh(far: FarActors) -> None:
    """A call that waits there, one that comes later, and one by a handle that comes later: none waits for ever."""
    one, two = far.worker(), far.worker()
    driver = far.driver(address="127.0.0.1", machine="another")
    for mesh, worker in (("asking", one), ("late", one), ("asked", two)):
        driver.ask("spawn", mesh, [worker.url])
    driver.ask("call", "asking", "ask", "asked")  # that one has its handle
    waiting = driver.begin("call", "asking", "ask", "asked", "wait")
    os.kill(two.pid, signal.SIGSTOP)
    driver.ask("end", "asked", "its host is lost")
    later = [driver.begin("call", mesh, "ask", "asked") for mesh in ("asking", "late")]
    for answer in map(driver.answer, (waiting, *later)):
        assert answer["error"] == "ActorDied"
        assert "mesh asked: its host is lost" in answer["text"]
