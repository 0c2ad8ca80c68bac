"""Messengers of a few machines as processes of their own, with bare ZeroMQ for ranks, callers and other messengers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import zmq

from forgectl.boot import BOOT
from forgectl.messages.dialling import HELLO
from forgectl.messages.frames import (
    ANSWERS,
    BETWEEN_MESSENGERS,
    CALL,
    LOST,
    MESSENGER,
    TO_RANKS,
    VALUE,
    Address,
    pack,
    socket_name,
    unpack,
)
from forgectl.messages.keys import RunKeys
from tests.conftest import until

NET = "messenger-net"
LOCAL = "127.0.0.1"
RANK = socket_name("mesh", 0, 0)
PREFIX = RANK.split(".")[0]
WAIT_MS = 20_000
B_RANK = Address("b", RANK)


class Wire:
    """A bare socket, on which nothing is waited for without end."""

    def __init__(self, made: zmq.Socket[bytes]) -> None:
        self.socket = made
        made.linger = 0
        made.set_hwm(0)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def take(self) -> list[bytes]:
        """The next message; a hello, by which a messenger sees whether a link is still there, is none."""
        while True:
            assert self.socket.poll(WAIT_MS), "nothing has come"
            if (frames := self.socket.recv_multipart()) != [HELLO]:
                return frames

    def has_nothing(self) -> bool:
        """To be asked once something that was sent later has arrived."""
        while self.socket.poll(0):
            if self.socket.recv_multipart() != [HELLO]:
                return False
        return True


class Caller(Wire):
    """A process that calls ranks of other machines through its messenger."""

    def call(self, to: Address, number: int, *body: bytes, kind: int = CALL) -> None:
        self.send(*pack(kind, number, body, to.to()))

    def answer(self) -> tuple[int, int, list[bytes]]:
        kind, number, _, body = unpack(self.take(), ANSWERS)
        return kind, number, body

    def lost(self, number: int) -> str:
        kind, found, [why] = self.answer()
        assert (kind, found) == (LOST, number)
        return why.decode()


class Member(Wire):
    """The messenger of another machine, or what poses as one."""

    def ask(self, to: Address, number: int, *body: bytes) -> None:
        self.send(*pack(CALL, number, body, to.to()))

    def answer(self, number: int, *body: bytes) -> None:
        self.send(*pack(VALUE, number, body))

    def asked(self) -> tuple[int, int, bytes, list[bytes]]:
        """Kind, number, to and body."""
        return unpack(self.take(), BETWEEN_MESSENGERS)


class Rank(Wire):
    """What a rank's socket is to its messenger."""

    def request(self) -> tuple[bytes, int, int, list[bytes]]:
        """Who asks, kind, number and body."""
        who, *message = self.take()
        kind, number, _, body = unpack(message, TO_RANKS)
        return who, kind, number, body

    def answer(self, who: bytes, number: int, *body: bytes, kind: int = VALUE) -> None:
        self.send(who, *pack(kind, number, body))

    def reply(self, count: int = 1) -> None:
        """Send back what comes."""
        for _ in range(count):
            who, _, number, body = self.request()
            self.answer(who, number, *body)


class Host:
    """A machine: the folder of its sockets, and its messenger."""

    def __init__(
        self,
        lab: Lab,
        place: str,
        direct: tuple[str, ...],
        address: str = LOCAL,
        driver: str = "",
        descriptors: int | None = None,
    ) -> None:
        """`descriptors`: how many its messenger may have."""
        self.lab, self.place, self.direct, self.address, self.driver = lab, place, direct, address, driver
        self.limit = ["prlimit", f"--nofile={descriptors}"] if descriptors else []
        self.folder = lab.folder / f"{len(lab.hosts)}"
        self.folder.mkdir(0o700, exist_ok=True)
        self.log = lab.folder / f"{len(lab.hosts)}.log"
        self.start()

    def start(self) -> None:
        """The first messenger, or the successor of one that has ended."""
        report, theirs = os.pipe()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.limit, sys.executable, BOOT, "messenger", str(os.getpid()), str(theirs)],
                stdin=subprocess.PIPE,
                stderr=log,
                pass_fds=[theirs],
                cwd="/",
            )
        os.close(theirs)
        self.lab.started.append(self.process)
        self.tell(**self.config())
        with os.fdopen(report) as said:
            self.said = json.loads(said.read())
        self.port = self.said.get("port")

    def config(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "folder": str(self.folder),
            "address": self.address,
            "secret": self.lab.keys.secret(self.place),
            "members": self.lab.members,
            "direct": self.direct,
            "driver": self.driver,
        }

    def tell(self, **order: Any) -> None:
        self.tell_text(json.dumps(order) + "\n")

    def tell_text(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode(errors="surrogatepass"))
        self.process.stdin.flush()

    def tcp(self) -> str:
        return f"tcp://{LOCAL}:{self.port}"

    def unix(self) -> str:
        return f"ipc://{self.folder / NET}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def caller(self) -> Caller:
        made = Caller(self.lab.context.socket(zmq.DEALER))
        made.socket.connect(f"ipc://{self.folder / MESSENGER}")
        return made

    def rank(self, name: str = RANK) -> Rank:
        made = Rank(self.lab.context.socket(zmq.ROUTER))
        made.socket.bind(f"ipc://{self.folder / name}")
        return made

    def said_so_far(self) -> str:
        return self.log.read_text(errors="replace")

    def until_said(self, text: str) -> None:
        until(lambda: text in self.said_so_far(), f"{text!r} of {self.place or 'the hub'}", seconds=20)

    def until_holds(self, text: str) -> None:
        """Until it holds what `text` says, by its own account."""

        def holds() -> bool:
            before = self.said_so_far().count("calls=")
            self.tell(describe=True)
            until(lambda: self.said_so_far().count("calls=") > before, "its account", seconds=20)
            return text in self.said_so_far().splitlines()[-1]

        until(holds, f"{text!r} of {self.place}", seconds=20)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def is_well(self) -> bool:
        return self.process.poll() is None and "Traceback" not in self.said_so_far()


class Lab:
    """Machines of one run. All that was started ends with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fm-", dir="/tmp"))  # sockets have short paths
        self.keys = RunKeys.new()
        self.members = self.keys.members(["", "a", "b", "c"])
        self.context = zmq.Context()
        self.hosts: list[Host] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def host(self, place: str, direct: tuple[str, ...], address: str = LOCAL, driver: str = "", **options: int) -> Host:
        self.hosts.append(made := Host(self, place, direct, address, driver, **options))
        return made

    def pair(self, way: str = "tcp") -> tuple[Host, Host]:
        """Machines a and b, of which a dials b."""
        a, b = self.host("a", ("b",)), self.host("b", ("a",))
        a.tell(links={"b": b.tcp() if way == "tcp" else b.unix()})
        return a, b

    def posing(self, place: str, to: Host, keys: RunKeys | None = None, name: bytes = b"", dial: bool = True) -> Member:
        """What dials a messenger with the key of a machine."""
        made = Member(self.context.socket(zmq.DEALER))
        made.socket.curve_secretkey = (keys or self.keys).secret(place).encode()
        made.socket.curve_publickey = (keys or self.keys).public(place).encode()
        made.socket.curve_serverkey = self.members[to.place].encode()
        if name:
            made.socket.setsockopt(zmq.ROUTING_ID, name)
        if dial:
            made.socket.connect(to.tcp())
        return made

    def close(self) -> None:
        self.context.destroy(linger=0)
        for process in self.started:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        ends = [process.wait(10) for process in self.started]
        logs = "\n".join(host.said_so_far() for host in self.hosts)
        shutil.rmtree(self.folder)
        assert set(ends) <= {0, -signal.SIGKILL, 1}
        assert "Traceback" not in logs, logs[-3000:]


def check_calls_get_through(a: Host, b: Host, rank: Rank | None = None) -> None:
    caller, rank = a.caller(), rank or b.rank()
    caller.call(Address(b.place, RANK), 7, b"body", b"buffer")
    rank.reply()
    assert caller.answer() == (VALUE, 7, [b"body", b"buffer"])
