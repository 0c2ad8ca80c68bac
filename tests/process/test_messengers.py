"""Messengers between the machines of a run: what gets through, in which order, and who does not."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from forgectl.boot import BOOT
from forgectl.messages.frames import CALL, CAST, FORGET, LOST, VALUE, Address, head, socket_name
from forgectl.messages.keys import RunKeys
from tests.conftest import listening_ports, until
from tests.process.messengers import RANK, SECONDS, Messenger, Peer

PLACES = ["", "a", "b"]
Direct = dict[str, list[str]]
STAR: Direct = {"": ["a", "b"], "a": [""], "b": [""]}
FULL: Direct = {"": ["a", "b"], "a": ["", "b"], "b": ["", "a"]}


class Run:
    """The messengers of one run, by place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = RunKeys.new()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.linger = 0
        self.of: dict[str, Messenger] = {}
        self._every: list[Messenger] = []

    def start(self, place: str, direct: Direct = STAR) -> Messenger:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        address = "127.0.0.1" if place else ""
        found = self.of[place] = Messenger(folder, self.keys, place, PLACES, direct[place], address)
        self._every.append(found)
        return found

    def all(self, direct: Direct = STAR) -> Run:
        for place in PLACES:
            self.start(place, direct)
        self.link(direct)
        return self

    def link(self, direct: Direct = STAR) -> None:
        """As a controller would: the launching machine dials, and of two others the first."""
        for place, others in direct.items():
            self.of[place].tell({"links": {o: self.of[o].url for o in others if place < o}})

    def peer(self, place: str, rank: str | None = None) -> Peer:
        return Peer(self.context, self.of[place], rank)

    def close(self) -> None:
        for messenger in self._every:
            messenger.kill()
        self.context.destroy(0)


@pytest.fixture
def run() -> Iterator[Run]:
    folder = Path(tempfile.mkdtemp(prefix="forge-"))  # a short one: sockets are in it
    run = Run(folder)
    yield run
    run.close()
    shutil.rmtree(folder)


# ---------------------------------------------------------------- what gets through


@pytest.mark.parametrize(
    ("direct", "start", "end"),
    [(STAR, "", "a"), (STAR, "a", ""), (STAR, "a", "b"), (FULL, "a", "b"), (FULL, "b", "a"), (STAR, "a", "a")],
    ids=["to a host", "back", "through the hub", "directly", "against the dial", "on one machine"],
)
def test_a_call_and_its_answer(run: Run, direct: Direct, start: str, end: str) -> None:
    run.all(direct)
    caller, rank = run.peer(start), run.peer(end, RANK)
    for kind in (CALL, CAST):
        number = caller.call(Address(end, RANK), b"body", b"x" * (8 << 20), b"", kind=kind)
        rank.echo()
        assert caller.answer() == (VALUE, number, [b"body", b"x" * (8 << 20), b""])


def test_links_through_a_unix_socket(run: Run) -> None:
    """As ssh's forwarding ends in one."""
    run.all()
    run.of[""].tell({"links": {"a": run.of["a"].net}})
    caller, rank = run.peer(""), run.peer("a", RANK)
    number = caller.call(Address("a", RANK), b"body")
    rank.echo()
    assert caller.answer() == (VALUE, number, [b"body"])


def test_calls_wait_for_links_and_ranks_that_are_yet_to_come(run: Run) -> None:
    run.start("")
    caller = run.peer("")
    numbers = [caller.call(Address("a", RANK), b"%d" % k) for k in range(3)]
    run.start("a")
    run.start("b")
    run.link()
    rank = run.peer("a", RANK)
    for k, number in enumerate(numbers):
        rank.echo()
        assert caller.answer() == (VALUE, number, [b"%d" % k])


def test_calls_of_one_caller_arrive_in_order(run: Run) -> None:
    run.all()
    caller, rank = run.peer("a"), run.peer("b", RANK)
    for k in range(1000):
        caller.call(Address("b", RANK), b"%d" % k)
    requests = [rank.request() for _ in range(1000)]
    assert [body for *_, body in requests] == [[b"%d" % k] for k in range(1000)]
    for whose, _, number, body in reversed(requests):
        rank.socket.send_multipart([whose, head(VALUE, number), *body])
    answers = [caller.answer() for _ in range(1000)]
    assert sorted(number for _, number, _ in answers) == list(range(1, 1001))
    assert all(body == [b"%d" % (number - 1)] for _, number, body in answers)


def test_callers_on_both_sides_at_once(run: Run) -> None:
    run.all()
    one, two = run.peer(""), run.peer("a")
    far, near = run.peer("a", RANK), run.peer("", RANK)
    for k in range(50):
        one.call(Address("a", RANK), b"one %d" % k)
        two.call(Address("", RANK), b"two %d" % k)
    for _ in range(50):
        far.echo()
        near.echo()
    for name, caller in ((b"one", one), (b"two", two)):
        assert [caller.answer()[2] for _ in range(50)] == [[b"%s %d" % (name, k)] for k in range(50)]


# ---------------------------------------------------------------- what is lost


def test_what_waits_when_a_link_breaks_is_lost_and_later_calls_find_the_successor(run: Run) -> None:
    run.all()
    caller, rank = run.peer(""), run.peer("a", RANK)
    number = caller.call(Address("a", RANK), b"waits")
    assert rank.request()[3] == [b"waits"]
    run.of["a"].kill()
    kind, lost, body = caller.answer()
    assert (kind, lost) == (LOST, number)
    assert b"connection to host a was lost" in body[0]
    run.start("a")
    run.link()
    rank = run.peer("a", RANK)
    number = caller.call(Address("a", RANK), b"again")
    rank.echo()
    assert caller.answer() == (VALUE, number, [b"again"])


def test_a_host_is_told_of_a_link_that_its_dialler_has_lost(run: Run) -> None:
    """The side that was dialled: it knows by the next connection, or by failing to send."""
    run.all()
    caller, rank = run.peer("a"), run.peer("", RANK)
    caller.call(Address("", RANK), b"waits")
    assert rank.request()[3] == [b"waits"]
    run.of[""].kill()
    run.start("")
    run.link()
    assert caller.answer()[0] == LOST
    again = run.peer("", RANK)
    number = caller.call(Address("", RANK), b"again")
    again.echo()
    assert caller.answer() == (VALUE, number, [b"again"])


def test_ranks_that_have_ended(run: Run) -> None:
    run.all()
    caller, rank, later = run.peer(""), run.peer("a", RANK), socket_name("mesh", 1, 0)
    caller.call(Address("a", RANK), b"waits")
    assert rank.request()[3] == [b"waits"]
    run.of["a"].tell({"ended": [RANK.partition(".")[0], 0]})
    next_one = run.peer("a", later)
    caller.call(Address("a", later), b"next")
    next_one.echo()
    assert caller.answer() == (VALUE, 2, [b"next"])
    caller.call(Address("a", RANK), b"too late")
    assert caller.answer() == (LOST, 3, [b"the rank has ended"])


def test_what_is_forgotten_is_not_answered(run: Run) -> None:
    run.all()
    works(run)  # a link that is up: what waits for one is not even sent
    caller, rank = run.peer(""), run.peer("a", RANK)
    for _ in range(100):
        number = caller.call(Address("a", RANK), b"forgotten")
        caller.socket.send_multipart([Address("a", RANK).to(), head(FORGET, number)])
    last = caller.call(Address("a", RANK), b"kept")
    for _ in range(101):
        rank.echo()
    assert caller.answer() == (VALUE, last, [b"kept"])
    assert run.of[""].log.read_text() == run.of["a"].log.read_text() == ""


def test_a_place_that_is_none(run: Run) -> None:
    run.all()
    caller = run.peer("")
    caller.call(Address("nowhere", RANK), b"x")
    kind, _, body = caller.answer()
    assert (kind, body) == (LOST, [b"there is no way to host nowhere"])


# ---------------------------------------------------------------- who is kept out


def works(run: Run) -> None:
    """A call gets through."""
    caller, rank = run.peer(""), run.peer("a", RANK)
    number = caller.call(Address("a", RANK), b"body")
    rank.echo()
    assert caller.answer() == (VALUE, number, [b"body"])
    rank.socket.close()


def test_it_listens_on_its_address_and_in_its_folder_alone(run: Run) -> None:
    run.all()
    assert listening_ports({run.of["a"].process.pid}) == {("127.0.0.1", run.of["a"].port)}
    assert listening_ports({run.of[""].process.pid}) == set()
    for messenger in run.of.values():
        fds = {os.readlink(f) for f in Path(f"/proc/{messenger.process.pid}/fd").iterdir()}
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        paths = [row[7] for row in rows if f"socket:[{row[6]}]" in fds and len(row) > 7]
        assert sorted(set(paths)) == [str(messenger.folder / n) for n in ("messenger", "messenger-net")]
        assert all(Path(p).stat().st_mode & 0o077 == 0 for p in paths)


def stranger(run: Run, *, keys: RunKeys | None, server: str) -> zmq.Socket[bytes]:
    """A peer that dials host a with other keys, or none."""
    peer = run.context.socket(zmq.DEALER)
    peer.linger = 0
    if keys is not None:
        peer.curve_secretkey, peer.curve_publickey = keys.secret("").encode(), keys.public("").encode()
        peer.curve_serverkey = server.encode()
    peer.connect(run.of["a"].url)
    return peer


@pytest.mark.parametrize("how", ["no key", "another run's key", "another run's key, and theirs for the server's"])
def test_who_has_no_key_of_the_run_is_refused(run: Run, how: str) -> None:
    run.all()
    works(run)
    other = RunKeys.new()
    server = other.public("a") if "theirs" in how else run.keys.public("a")
    peer = stranger(run, keys=None if how == "no key" else other, server=server)
    events = peer.get_monitor_socket()
    rank = run.peer("a", RANK)
    peer.send_multipart([Address("a", RANK).to(), head(CALL, 1), b"let me in"])
    good, bad = (zmq.EVENT_HANDSHAKE_SUCCEEDED, (0x0800, 0x2000, 0x4000, zmq.EVENT_DISCONNECTED))
    from zmq.utils.monitor import recv_monitor_message

    while (event := recv_monitor_message(events)["event"]) not in bad:
        assert event != good
    rank.socket.rcvtimeo = 300
    with pytest.raises(zmq.Again):
        rank.request()
    rank.socket.close()
    works(run)


def test_garbage_and_half_handshakes_do_not_keep_others_from_it(run: Run) -> None:
    run.all()
    works(run)
    chance, held = random.Random(3), []
    with contextlib.ExitStack() as stack:
        for k in range(1000):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", run.of["a"].port), SECONDS))
            greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01CURVE" + bytes(47)
            with contextlib.suppress(ConnectionError):
                peer.sendall(
                    [greeting[: chance.randint(0, 64)], chance.randbytes(300), b"GET / HTTP/1.1\r\n\r\n"][k % 3]
                )
            held.append(peer)
        works(run)
    works(run)
    assert run.of["a"].process.poll() is None


def test_a_member_cannot_pass_as_another(run: Run) -> None:
    """Its key says who it is: what it claims is neither believed nor any use."""
    run.all()
    works(run)
    for claimed in (b"", b"b", b"\x01x"):
        peer = run.context.socket(zmq.DEALER)
        peer.linger = 0
        if claimed:
            peer.routing_id = claimed
        peer.curve_secretkey, peer.curve_publickey = run.keys.secret("b").encode(), run.keys.public("b").encode()
        peer.curve_serverkey = run.keys.public("a").encode()
        peer.connect(run.of["a"].url)
        peer.send(b"hello")
        works(run)  # host a still answers the launching machine, not this one
        peer.close()


def test_fuzzed_frames_of_a_member_and_of_a_process_are_reported_and_not_fatal(run: Run) -> None:
    run.all()
    works(run)
    member = run.context.socket(zmq.DEALER)
    member.linger = 0
    member.curve_secretkey, member.curve_publickey = run.keys.secret("b").encode(), run.keys.public("b").encode()
    member.curve_serverkey = run.keys.public("a").encode()
    member.connect(run.of["a"].url)
    process = run.context.socket(zmq.DEALER)
    process.linger = 0
    process.connect(f"ipc://{run.of['a'].folder / 'messenger'}")
    chance = random.Random(5)
    pieces: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: b"hello",
        lambda: chance.randbytes(chance.randint(0, 60)),
        lambda: head(chance.choice((CALL, CAST, FORGET, VALUE, LOST)), chance.choice((0, 1, 7, 2**63))),
        lambda: Address(chance.choice(("a", "b", "", "x")), RANK).to(),
        lambda: b"a\0../../etc/passwd",
    ]
    for _ in range(2000):
        frames = [chance.choice(pieces)() for _ in range(chance.randint(1, 5))]
        chance.choice((member, process)).send_multipart(frames)
    for sender in (member, process):
        sender.rcvtimeo = SECONDS * 1000
        sender.send_multipart([Address("a", "nonsense").to(), head(CALL, 999), b"x"])
    until(lambda: "dropped" in run.of["a"].log.read_text(), "the reports")
    rank = run.peer("a", socket_name("other", 0, 0))
    caller = run.peer("")
    number = caller.call(Address("a", socket_name("other", 0, 0)), b"body")
    rank.echo()
    assert caller.answer() == (VALUE, number, [b"body"])
    assert len(run.of["a"].log.read_text().splitlines()) < 200
    member.close()
    process.close()


def test_orders_that_are_nonsense_are_reported(run: Run) -> None:
    run.all()
    stdin = run.of["a"].process.stdin
    assert stdin is not None
    stdin.write(b'nonsense\n{"links": 7}\n{"ended": [1]}\n[]\n{"links": {"": "nowhere://x"}}\n')
    stdin.flush()
    until(lambda: run.of["a"].log.read_text().count("order that cannot be") == 5, "five reports")
    works(run)


# ---------------------------------------------------------------- its life


def test_it_ends_with_its_standard_input(run: Run) -> None:
    messenger = run.start("a")
    assert messenger.process.stdin is not None
    messenger.process.stdin.close()
    assert messenger.process.wait(SECONDS) == 0


def test_it_dies_with_its_parent(run: Run) -> None:
    code = (
        "import os, subprocess, sys, time; r, w = os.pipe();"
        f"argv = [sys.executable, {BOOT!r}, 'messenger', str(os.getpid()), str(w)];"
        "p = subprocess.Popen(argv, pass_fds=[w], stdin=0);"
        "os.close(w); print(p.pid, flush=True); os.read(r, 1); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until(lambda: _is_over(handle), "its end")
    os.close(handle)


def _is_over(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 0)[0])


def test_an_address_that_is_not_the_machines_is_said(run: Run) -> None:
    messenger = Messenger(run.folder, run.keys, "a", PLACES, [""], "192.0.2.1")
    assert "192.0.2.1" in messenger.said["error"]
    assert messenger.process.wait(SECONDS) == 1
    messenger.kill()


def test_no_secret_is_on_a_command_line_in_an_environment_or_a_log(run: Run) -> None:
    run.all()
    works(run)
    for place, messenger in run.of.items():
        secret = run.keys.secret(place).encode()
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{messenger.process.pid}/{name}").read_bytes()
        assert secret not in messenger.log.read_bytes()


def test_a_hop_takes_little_time(run: Run) -> None:
    """Not an assertion on seconds: it is here to be looked at (-s); benchmarks have the limits."""
    run.all()
    caller, rank = run.peer(""), run.peer("a", RANK)
    began = time.perf_counter()
    for _ in range(500):
        caller.call(Address("a", RANK), b"body")
        rank.echo()
        caller.answer()
    print(f"{(time.perf_counter() - began) / 500 * 1e6:.0f} µs a call through two messengers")
