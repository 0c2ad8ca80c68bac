"""More connections from the network than a messenger has descriptors, and members all the same."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from forgectl.messages.dialling import HELLO, CurveKeys, dial, event_of
from forgectl.messages.frames import BETWEEN_MESSENGERS, VALUE, pack, unpack
from forgectl.messages.sockets import new_socket
from tests.conftest import PROGRAMS, until
from tests.process.messenger_lab import B_RANK, LOCAL, WAIT_MS, Host, Lab, Wire, check_calls_get_through

FEW = 256
MANY, FOR_MANY = 100, 140
MEMBERS = [f"m{k}" for k in range(MANY)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with contextlib.closing(Lab()) as lab:
        yield lab


@contextlib.contextmanager
def flood(to: Host, *sources: str) -> Iterator[subprocess.Popen[str]]:
    """A program that keeps connecting; it prints its numbers every 1,000 connections, and ends when these are ended."""
    argv = [sys.executable, str(PROGRAMS / "intruder.py"), "flood", LOCAL, str(to.port), *sources]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.communicate()


def hears(program: subprocess.Popen[str]) -> tuple[int, int]:
    """Connections that were made so far, and those that were ended."""
    assert program.stdout is not None
    made, ended = json.loads(program.stdout.readline())
    return made, ended


@pytest.mark.parametrize("sources", [["127.0.0.2"], [f"127.0.1.{n}" for n in range(1, 17)]], ids=["one", "several"])
def test_members_call_and_come_while_strangers_take_all_that_they_can(lab: Lab, sources: list[str]) -> None:
    a, b = lab.host("a", ("b",)), lab.host("b", ("a", "c"), descriptors=FEW)
    a.tell(links={"b": b.tcp()})
    rank = b.rank()
    check_calls_get_through(a, b, rank)
    before = b.descriptors()
    with flood(b, *sources) as strangers:
        for _ in range(5):
            made, ended = hears(strangers)
            check_calls_get_through(a, b, rank)
            member = lab.posing("c", b)
            member.send(b"hello")
            member.ask(B_RANK, made, b"new")
            rank.reply()
            assert member.asked() == (VALUE, made, b"", [b"new"])
            member.socket.close()
        assert made >= 5000 and ended > 1000
    check_calls_get_through(a, b, rank)
    until(lambda: b.descriptors() <= before, f"{before} descriptors, now {b.descriptors()}", seconds=20)
    assert b.said_so_far().count("show no key") == 1 and b.is_well()


def test_more_members_at_once_from_one_address_than_may_be_strangers(lab: Lab) -> None:
    """They are all let in some time: those that are hung up on dial again by themselves."""
    lab.members = lab.keys.members(["", "b", *MEMBERS])
    b = lab.host("b", (), descriptors=FOR_MANY)
    b.process.send_signal(signal.SIGSTOP)
    poller, dealers = zmq.Poller(), {}
    for name in MEMBERS:
        made = new_socket(zmq.DEALER)
        told = dial(made, CurveKeys(lab.keys.secret(name), lab.keys.public(name)), lab.members["b"], b.tcp())
        dealers[told] = made
        poller.register(told, zmq.POLLIN)
        poller.register(made, zmq.POLLIN)
    b.process.send_signal(signal.SIGCONT)
    greeted = set[Any]()
    while len(greeted) < MANY:
        ready = poller.poll(WAIT_MS)
        assert ready, f"{len(greeted)} were greeted"
        for found, _ in ready:
            frames = found.recv_multipart()
            if found not in dealers:
                greeted.add(found)
            elif event_of(frames) == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dealers[found].send(HELLO)
    for told, made in dealers.items():
        made.disable_monitor()
        told.close()
        made.close()


def test_who_cannot_be_dialled_for_want_of_descriptors_is_dialled_later(lab: Lab) -> None:
    a, b = lab.host("a", ("b",)), lab.host("b", ("a",))
    used = {int(name) for name in os.listdir(f"/proc/{a.process.pid}/fd")}
    none_left = next(n for n in itertools.count() if n not in used)
    soft, hard = resource.prlimit(a.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(a.process.pid, resource.RLIMIT_NOFILE, (none_left, hard))
    a.tell(links={"b": b.tcp()})
    a.until_said("Too many open files")
    resource.prlimit(a.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    check_calls_get_through(a, b)


def read_to_its_end(connection: socket.socket) -> None:
    while connection.recv(100):
        pass


def test_a_stranger_that_sends_more_than_a_handshake_is_ended(lab: Lab) -> None:
    """ZeroMQ keeps a message of whatever length it is told, until the handshake has taken too long."""
    b = lab.host("b", ("a",))
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47)
    with socket.create_connection((LOCAL, b.port)) as silent, socket.create_connection((LOCAL, b.port), 10) as greedy:
        silent.setblocking(False)
        greedy.sendall(greeting + b"\x06" + (8 << 30).to_bytes(8, "big") + bytes(5000))
        read_to_its_end(greedy)
        with pytest.raises(BlockingIOError):  # the first to come is still there, it has time left
            read_to_its_end(silent)
    assert b.is_well()


def bind(wire: Wire, port: int) -> None:
    """Bind it to a port (0: any), once its last user has closed that."""

    def bound() -> bool:
        try:
            wire.socket.bind(f"tcp://{LOCAL}:{port or '*'}")
        except zmq.ZMQError:
            return False
        return True

    until(bound, "the port, which its last user closes soon")


def test_nothing_is_sent_before_a_greeting_and_so_nothing_is_lost(lab: Lab) -> None:
    """Whoever is hung up on between its handshake and that dials again, and calls wait."""
    a = lab.host("a", ("b",))
    caller, port = a.caller(), 0
    for greets in (False, True):
        b = Wire(lab.context.socket(zmq.ROUTER))
        b.socket.curve_server, b.socket.curve_secretkey = True, lab.keys.secret("b").encode()
        bind(b, port)
        if not port:
            port = int(b.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
            caller.call(B_RANK, 1, b"x")
            a.tell(links={"b": f"tcp://{LOCAL}:{port}"})
        assert b.socket.poll(WAIT_MS)
        name, hello = b.socket.recv_multipart()
        a.until_holds("waiting=1")
        assert hello == HELLO and b.has_nothing()
        if greets:
            b.send(name, HELLO)
            _, number, to, body = unpack(b.take()[1:], BETWEEN_MESSENGERS)
            assert (to, body) == (B_RANK.to(), [b"x"])
            b.send(name, *pack(VALUE, number, [b"done"]))
        else:
            b.socket.close()
    assert caller.answer() == (VALUE, 1, [b"done"])
