"""Messengers as processes of their own, with bare ZeroMQ for ranks, callers and other machines' messengers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from forgectl.boot import BOOT
from forgectl.messages.dialling import HELLO
from forgectl.messages.frames import (
    CALL,
    CAST,
    ERROR,
    FORGET,
    LOST,
    VALUE,
    WAY,
    Address,
    pack,
    socket_name,
)
from forgectl.messages.keys import RunKeys
from tests.conftest import listening_ports, until
from tests.process.messenger_lab import (
    B_RANK,
    LOCAL,
    PREFIX,
    RANK,
    WAIT_MS,
    Host,
    Lab,
    Member,
    check_calls_get_through,
)

FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)
"""Events of a socket that is not let in."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with contextlib.closing(Lab()) as lab:
        yield lab


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_a_call_and_its_answer_between_two_machines(lab: Lab, way: str) -> None:
    a, b = lab.pair(way)
    caller, rank = a.caller(), b.rank()
    for number, kind, answer in ((1, CALL, VALUE), (2, CAST, VALUE), (2**64 - 1, CALL, ERROR)):
        caller.call(B_RANK, number, b"body", b"", b"buffer", kind=kind)
        who, asked, theirs, body = rank.request()
        assert (asked, body) == (kind, [b"body", b"", b"buffer"])
        rank.answer(who, theirs, b"result", b"more", kind=answer)
        assert caller.answer() == (answer, number, [b"result", b"more"])


def test_the_machine_that_is_dialled_calls_as_well(lab: Lab) -> None:
    a, b = lab.pair()
    rank, caller = a.rank(), b.caller()
    caller.call(Address("a", RANK), 1, b"x")
    rank.reply()
    assert caller.answer() == (VALUE, 1, [b"x"])


def test_a_call_to_a_rank_of_the_same_machine(lab: Lab) -> None:
    check_calls_get_through(a := lab.host("a", ()), a)


def test_calls_made_before_there_is_a_link_or_a_rank_wait(lab: Lab) -> None:
    a, b = lab.host("a", ("b",)), lab.host("b", ("a",))
    caller = a.caller()
    for number in range(3):
        caller.call(B_RANK, number, b"%d" % number)
    a.until_holds("waiting=3")
    a.tell(links={"b": b.tcp()})
    b.until_holds("calls=3")
    rank = b.rank()
    rank.reply(3)
    assert [caller.answer() for _ in range(3)] == [(VALUE, n, [b"%d" % n]) for n in range(3)]


@pytest.mark.parametrize("hub_dials", [True, False])
def test_machines_without_a_link_of_their_own_call_by_way_of_the_hub(lab: Lab, hub_dials: bool) -> None:
    hub, a, b = lab.host("", ("a", "b")), lab.host("a", ("",)), lab.host("b", ("",))
    if hub_dials:
        hub.tell(links={"a": a.tcp(), "b": b.unix()})
    else:
        a.tell(links={"": hub.tcp()})
        b.tell(links={"": hub.unix()})
    check_calls_get_through(a, b)
    check_calls_get_through(b, a)
    check_calls_get_through(a, hub)
    caller = a.caller()
    caller.call(Address("c", RANK), 1)
    assert "no way to host c" in caller.lost(1)


def test_order_is_kept_and_callers_are_kept_apart(lab: Lab) -> None:
    a, b = lab.pair()
    one, two, rank = a.caller(), a.caller(), b.rank()
    for number in range(1000):
        one.call(B_RANK, number, b"one %d" % number)
        two.call(B_RANK, number, b"two %d" % number)
    asked = [rank.request() for _ in range(2000)]
    for name in (b"one", b"two"):
        assert [body[0] for *_, body in asked if body[0][:3] == name] == [b"%s %d" % (name, n) for n in range(1000)]
    for who, _, number, body in asked:
        rank.answer(who, number, *body)
    for name, caller in ((b"one", one), (b"two", two)):
        assert [caller.answer() for _ in range(1000)] == [(VALUE, n, [b"%s %d" % (name, n)]) for n in range(1000)]


def test_long_buffers_arrive_unharmed(lab: Lab) -> None:
    a, b = lab.pair()
    caller, rank = a.caller(), b.rank()
    buffers = [random.Random(k).randbytes(size) for k, size in enumerate((8 << 20, 64 << 10, 1, 8 << 20))]
    for number in range(3):
        caller.call(B_RANK, number, b"body", *buffers)
    rank.reply(3)
    for number in range(3):
        assert caller.answer() == (VALUE, number, [b"body", *buffers])


def test_a_call_that_nobody_waits_for_is_forgotten_all_along_the_way(lab: Lab) -> None:
    hub, a, b = lab.host("", ("a", "b")), lab.host("a", ("",)), lab.host("b", ("",))
    for host in (a, b):
        host.tell(links={"": hub.tcp()})
    caller, rank = a.caller(), b.rank()
    caller.call(B_RANK, 1, b"slow")
    who, _, number, _ = rank.request()
    caller.send(*pack(FORGET, 1, to=B_RANK.to()))
    for host in (a, hub, b):
        host.until_holds("calls=0")
    rank.answer(who, number, b"late")
    caller.call(B_RANK, 2, b"next")
    rank.reply()
    assert caller.answer() == (VALUE, 2, [b"next"])
    assert "dropped" not in b.said_so_far()


def test_a_call_that_still_waits_for_its_link_is_forgotten_too(lab: Lab) -> None:
    a = lab.host("a", ("b",))
    caller = a.caller()
    caller.call(B_RANK, 1, b"never")
    a.until_holds("calls=1 waiting=1")
    caller.send(*pack(FORGET, 1, to=B_RANK.to()))
    a.until_holds("calls=0 waiting=0")
    b = lab.host("b", ("a",))
    a.tell(links={"b": b.tcp()})
    rank = b.rank()
    caller.call(B_RANK, 2, b"first")
    assert rank.request()[3] == [b"first"]


def test_ranks_that_have_ended(lab: Lab) -> None:
    a, b = lab.pair()
    caller, rank = a.caller(), b.rank()
    caller.call(B_RANK, 1, b"x")
    rank.request()
    for host in (a, b):
        host.tell(ended=[PREFIX, 0])
        host.until_holds("calls=0 waiting=0 ranks=0")
    caller.call(B_RANK, 2)
    assert "has ended" in caller.lost(2)
    successor = b.rank(name := socket_name("mesh", 1, 0))
    caller.call(Address("b", name), 3, b"on")
    successor.reply()
    assert caller.answer() == (VALUE, 3, [b"on"])
    assert rank.has_nothing()


# ---------------------------------------------------------------- links that break


@pytest.mark.parametrize("dialler", ["a", "b"])
def test_a_messenger_that_dies(lab: Lab, dialler: str) -> None:
    """What waits for an answer is lost; what is called from then on waits for its successor."""
    a, b = lab.host("a", ("b",)), lab.host("b", ("a",))

    def link() -> None:
        one, other = (a, b) if dialler == "a" else (b, a)
        one.tell(links={other.place: other.tcp()})

    link()
    caller, rank = a.caller(), b.rank()
    caller.call(B_RANK, 1, b"slow")
    rank.request()
    b.kill()
    assert "connection to host b was lost" in caller.lost(1)
    caller.call(B_RANK, 2, b"after")
    a.until_holds("calls=1 waiting=1")
    b.start()
    link()
    rank.reply()
    assert caller.answer() == (VALUE, 2, [b"after"])
    a.until_holds("calls=0 waiting=0")


def test_a_machine_beyond_the_hub_that_is_lost(lab: Lab) -> None:
    hub, a, b = lab.host("", ("a", "b")), lab.host("a", ("",)), lab.host("b", ("",))
    a.tell(links={"": hub.tcp()})
    b.tell(links={"": hub.tcp()})
    caller, rank = a.caller(), b.rank()
    caller.call(B_RANK, 1, b"slow")
    rank.request()
    b.kill()
    assert "connection to host b was lost" in caller.lost(1)


def test_a_link_that_is_taken_away(lab: Lab) -> None:
    a, b = lab.pair()
    caller, rank = a.caller(), b.rank()
    caller.call(B_RANK, 1, b"slow")
    rank.request()
    a.tell(links={})
    assert "connection to host b was lost" in caller.lost(1)
    caller.call(B_RANK, 2, b"after")
    a.until_holds("calls=1 waiting=1")
    a.tell(links={"b": b.unix()})
    rank.reply()
    assert caller.answer() == (VALUE, 2, [b"after"])
    b.until_holds("calls=0")


def test_a_tunnel_with_nothing_at_its_other_end_loses_no_calls(lab: Lab) -> None:
    """Ssh accepts, and hangs up where it finds nothing there yet. It is dialled again, but not without pause."""
    a = lab.host("a", ("b",))
    with socket.create_server((LOCAL, 0)) as tunnel:
        caller = a.caller()
        caller.call(B_RANK, 1, b"early")
        a.tell(links={"b": f"tcp://{LOCAL}:{tunnel.getsockname()[1]}"})
        tunnel.settimeout(10)
        start = time.monotonic()
        for _ in range(4):
            tunnel.accept()[0].close()
        assert time.monotonic() - start > 0.2
    b = lab.host("b", ("a",))
    a.tell(links={"b": b.tcp()})
    rank = b.rank()
    rank.reply()
    assert caller.answer() == (VALUE, 1, [b"early"])


def test_one_connection_of_a_machine_replaces_the_other(lab: Lab) -> None:
    a = lab.host("a", ("b",))
    old, new = lab.posing("b", a), None
    old.send(b"hello")
    caller = a.caller()
    caller.call(B_RANK, 1)
    _, number, to, _ = old.asked()
    assert to == B_RANK.to()
    new = lab.posing("b", a)
    new.send(b"hello")
    assert "was lost" in caller.lost(1)
    old.answer(number, b"stale")
    old.ask(Address("a", RANK), 1, b"stale")
    caller.call(B_RANK, 2)
    new.answer(new.asked()[1], b"fresh")
    assert caller.answer() == (VALUE, 2, [b"fresh"])


# ---------------------------------------------------------------- who is let in


def test_strangers_are_refused_while_calls_go_on(lab: Lab) -> None:
    a, b = lab.pair()
    rank = b.rank()
    bare = Member(lab.context.socket(zmq.DEALER))
    mistaken = lab.context.socket(zmq.DEALER)
    mistaken.curve_publickey, mistaken.curve_secretkey = zmq.curve_keypair()
    mistaken.curve_serverkey = lab.members["c"].encode()
    keyless, other = (
        (bare, Member(mistaken)),
        (lab.posing("a", b, RunKeys.new(), dial=False), lab.posing("x", b, dial=False)),
    )
    for stranger in (*keyless, *other):
        events = stranger.socket.get_monitor_socket(FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED, f"inproc://{id(stranger)}")
        stranger.socket.connect(b.tcp())
        stranger.ask(B_RANK, 1, b"stranger")
        assert events.poll(WAIT_MS), "nobody was refused"
        event = int.from_bytes(events.recv_multipart()[0][:2], sys.byteorder)
        assert event & FAILED, f"event {event}"
        check_calls_get_through(a, b, rank)
    assert rank.has_nothing() and b.is_well()


def test_a_port_that_another_program_has_taken_is_dialled_again(lab: Lab) -> None:
    """ZeroMQ gives up where it is answered in another protocol."""
    a = lab.host("a", ("b",))
    with socket.create_server((LOCAL, 0)) as other:
        other.settimeout(10)
        a.tell(links={"b": f"tcp://{LOCAL}:{other.getsockname()[1]}"})
        for _ in range(2):
            with other.accept()[0] as taken:
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))
                taken.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    while taken.recv(4096):
                        pass
    assert a.is_well()


def test_garbage_and_half_handshakes_disturb_nobody(lab: Lab) -> None:
    a, b = lab.pair()
    rank = b.rank()
    noise = random.Random(1)
    greeting = b"\xff" + bytes(8) + b"\x7f"
    with contextlib.ExitStack() as held:
        for k in range(200):
            half = held.enter_context(socket.create_connection((LOCAL, b.port)))
            half.sendall(greeting[: k % 11])
            if k % 10 == 0:
                with socket.create_connection((LOCAL, b.port)) as garbage, contextlib.suppress(ConnectionError):
                    garbage.sendall(noise.randbytes(4096))
                with socket.create_connection((LOCAL, b.port)) as garbage, contextlib.suppress(ConnectionError):
                    garbage.sendall(greeting + b"\x03\0CURVE" + bytes(47) + noise.randbytes(4096))
                check_calls_get_through(a, b, rank)
        check_calls_get_through(a, b, rank)
    assert b.is_well()


@pytest.mark.parametrize("name", [b"", b"b", b"b\0" + RANK.encode()])
def test_no_machine_passes_as_another(lab: Lab, name: bytes) -> None:
    """Whatever it calls itself: what is meant for b does not reach c, and c cannot answer for b."""
    a = lab.host("a", ("b", "c"))
    b, c = lab.posing("b", a), lab.posing("c", a, name=name)
    c.send(b"hello")
    c.ask(Address("a", RANK), 5)  # it is let in
    a.until_holds("calls=1")
    caller = a.caller()
    caller.call(B_RANK, 1, b"secret")
    b.send(b"hello")
    _, number, _, body = b.asked()
    assert body == [b"secret"]
    c.answer(number, b"forged")
    a.until_said("was not asked")
    b.answer(number, b"true")
    assert caller.answer() == (VALUE, 1, [b"true"])
    assert c.has_nothing()


def test_a_process_here_cannot_answer_for_a_rank(lab: Lab) -> None:
    a = lab.host("a", ())
    caller, rank, other = a.caller(), a.rank(), a.rank(socket_name("mesh", 0, 1))
    for name, number in ((socket_name("mesh", 0, 1), 1), (RANK, 2)):
        caller.call(Address("a", name), number)
    whom, _, _, _ = other.request()
    who, _, number, _ = rank.request()
    other.answer(whom, number, b"forged")
    a.until_said("was not asked")
    rank.answer(who, number, b"true")
    assert caller.answer() == (VALUE, 2, [b"true"])


# ---------------------------------------------------------------- nonsense


def nonsense() -> list[list[bytes]]:
    """Messages that are none, some of them nearly one."""
    to, body = Address("a", RANK).to(), [b"body"]
    rng = random.Random(7)
    sound = [pack(CALL, 1, body, to)[0], pack(VALUE, 1, body)[0]]
    fixed = [
        pack(99, 1, body, to),
        pack(VALUE, 1, body, to),
        pack(VALUE, 2**64 - 1, body),
        pack(LOST, 0, [b"\xff"]),
        pack(LOST, 0, to=to),
        pack(CALL, 1, body),
        pack(CALL, 2, to=to),
        pack(CALL, 3, [b"", b"", b""], to),
        pack(FORGET, 99, body, to),
        pack(WAY, 5, to=b"a"),
        pack(WAY, 6, body, to=b"\xff\0"),
        pack(CALL, 4, body, b"a\0../../../etc/passwd"),
        pack(CALL, 5, body, b"a\0" + RANK.encode() + b"\0"),
        pack(CALL, 5, body, b"\xff\0" + RANK.encode()),
        pack(CALL, 6, body, b"x" * 300 + b"\0" + RANK.encode()),
        pack(CALL, 6, body, b"x" * 60_000),
        [sound[0][:-5] + bytes(100_000)],
        [b"x" * 100_000, b"body"],
        [b"x"],
        [b""],
        [b""] * 1000,
    ]
    drawn = [[rng.randbytes(rng.choice((0, 1, 11, 40))) for _ in range(rng.randrange(1, 5))] for _ in range(500)]
    cut = [[start[: rng.randrange(len(start))], *[b"more"] * rng.randrange(2)] for start in sound * 20]
    changed = [[bytes(b ^ (rng.random() < 0.05) * 0xFF for b in start)] for start in sound * 100]
    return [*map(list, fixed), *drawn, *cut, *changed]


def test_nonsense_of_a_member_is_reported_and_not_fatal(lab: Lab) -> None:
    a = lab.host("a", ("b",))
    member, rank = lab.posing("b", a), a.rank()
    member.send(b"hello")
    for message in nonsense():
        member.send(*message)
    member.ask(Address("a", RANK), 77, b"sound")
    while True:
        who, _, number, body = rank.request()
        rank.answer(who, number, *body)
        if body == [b"sound"]:
            break
    answers = iter(member.asked, (VALUE, 77, b"", [b"sound"]))
    assert all(kind in (LOST, VALUE) for kind, *_ in answers)
    check_reports(a)


def test_nonsense_of_a_process_here_is_reported_and_not_fatal(lab: Lab) -> None:
    a = lab.host("a", ())
    process = a.caller()
    for message in nonsense():
        process.send(*message)
    rank = a.rank(socket_name("mesh", 0, 5))
    process.call(Address("a", socket_name("mesh", 0, 5)), 77, b"sound")
    rank.reply()
    for kind, _, body in iter(process.answer, (VALUE, 77, [b"sound"])):  # some ask for a way
        assert kind == LOST or body == [b'{"address": ""}']
    check_reports(a)


def test_nonsense_of_a_rank_is_reported_and_not_fatal(lab: Lab) -> None:
    a = lab.host("a", ())
    caller, rank = a.caller(), a.rank()
    caller.call(Address("a", RANK), 1, b"sound")
    who, _, number, _ = rank.request()
    for message in nonsense():
        rank.send(who, *message)
    rank.answer(who, number, b"result")
    assert caller.answer() == (VALUE, 1, [b"result"])
    check_reports(a)


def check_reports(host: Host) -> None:
    lines = host.said_so_far().splitlines()
    assert 1 <= len(lines) <= 100 and max(map(len, lines)) < 500
    assert host.is_well()


def test_nonsense_in_its_orders_is_reported_and_not_fatal(lab: Lab) -> None:
    a, b = lab.host("a", ("b",)), lab.host("b", ("a",))
    for text in ["{", "", "5", "null", "[]", '"links"', "[" * 100_000, "\ud800", '{"links": 5}', '{"links": {"b": 5}}']:
        a.tell_text(text + "\n")
    for links in ({"b": "nonsense"}, {"b": None}, {"b": "tcp://"}, {"nobody": "tcp://127.0.0.1:1"}, {"b": ["x"]}):
        a.tell(links=links)
    for ended in (None, 5, [], ["x"], ["x", "y"], [5, 5, 5], [None, -1]):
        a.tell(ended=ended)
    good = json.dumps({"links": {"b": b.tcp()}})
    a.tell_text(good[:20])
    a.tell_text(good[20:] + '\n{"ended": ["0123456789ab", 3]}\n{"unknown": 1}\n')
    check_calls_get_through(a, b)
    assert a.is_well()


def test_memory_stays_bounded_under_a_flood(lab: Lab) -> None:
    """Nonsense of a member, sent as fast as can be: more than is passed on at once waits at the sender."""
    a = lab.host("a", ("b",))
    member = lab.posing("b", a, dial=False)
    member.socket.sndhwm = 100
    member.socket.connect(a.tcp())
    member.send(b"hello")
    assert member.socket.recv_multipart() == [HELLO]
    before = psutil.Process(a.process.pid).memory_info().rss
    body = bytes(4096)
    for _ in range(30_000):
        member.send(b"no message", body)
    assert psutil.Process(a.process.pid).memory_info().rss - before < 60 << 20
    assert a.is_well()


# ---------------------------------------------------------------- manners


def test_it_listens_at_its_address_alone(lab: Lab) -> None:
    a, b = lab.host("a", ()), lab.host("b", (), address="")
    assert listening_ports({a.process.pid}) == {(LOCAL, a.port)}
    assert listening_ports({b.process.pid}) == set() and b.port == 0
    for path in a.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_it_says_why_it_cannot_serve(lab: Lab) -> None:
    assert "192.0.2.1" in lab.host("a", (), address="192.0.2.1").said["error"]
    lab.started[-1].wait(10)
    lab.hosts[-1].log.write_text("")  # it ends with a traceback, as is meant


def test_nothing_secret_is_where_others_can_read_it(lab: Lab) -> None:
    a = lab.host("a", ())
    secret = lab.keys.secret("a").encode()
    for what in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{a.process.pid}/{what}").read_bytes()
    assert secret.decode() not in a.said_so_far()


def test_it_ends_with_its_standard_input_and_not_by_an_interrupt(lab: Lab) -> None:
    a = lab.host("a", ())
    a.process.send_signal(signal.SIGINT)
    check_calls_get_through(a, a)
    assert a.process.stdin is not None
    a.process.stdin.close()
    assert a.process.wait(10) == 0


def test_it_ends_with_its_parent(lab: Lab) -> None:
    a = lab.host("a", ())
    report, theirs = os.pipe()
    code = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, {BOOT!r}, "messenger", str(os.getpid()), {str(theirs)!r}],
                         pass_fds=[{theirs}])
os.close({theirs})
print(child.pid, flush=True)
child.wait()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[theirs]
    )
    lab.started.append(parent)
    os.close(theirs)
    assert parent.stdin is not None and parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.stdin.write(json.dumps({**a.config(), "folder": str(lab.folder)}).encode() + b"\n")
    parent.stdin.flush()
    with os.fdopen(report) as said:
        assert "port" in json.loads(said.read())
    parent.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end", seconds=10)
    parent.stdout.close()


def test_many_callers_at_once(lab: Lab) -> None:
    """Each in a thread, with as many calls under way as it likes."""
    a, b = lab.pair()
    rank = b.rank()
    found: dict[int, bool] = {}

    def many(k: int) -> None:
        caller = a.caller()
        for number in range(200):
            caller.call(B_RANK, number, b"%d %d" % (k, number))
        found[k] = all(caller.answer() == (VALUE, n, [b"%d %d" % (k, n)]) for n in range(200))

    threads = [threading.Thread(target=many, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    rank.reply(1600)
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)
    a.until_holds("calls=0")
