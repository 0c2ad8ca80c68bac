"""Messengers as agents start them, on this machine's loopback addresses, and bare peers that speak their format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import zmq

from forgectl.boot import BOOT
from forgectl.messages.frames import CALL, MESSENGER, VALUE, Address, answer_head, head, request_head, socket_name
from forgectl.messages.keys import RunKeys
from forgectl.messages.messenger import NET

SECONDS = 20
RANK = socket_name("mesh", 0, 0)


class Messenger:
    """One process with its folder, and what it was told."""

    def __init__(self, folder: Path, keys: RunKeys, place: str, members: list[str], direct: list[str], address: str):
        self.folder = folder
        self.place = place
        self.log = folder / "log"
        report, theirs = os.pipe()
        config = {
            "place": place,
            "folder": str(folder),
            "address": address,
            "secret": keys.secret(place),
            "members": keys.members(members),
            "direct": direct,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, BOOT, "messenger", str(os.getpid()), str(theirs)],
                stdin=subprocess.PIPE,
                stderr=log,
                pass_fds=[theirs],
            )
        os.close(theirs)
        self.tell(config)
        with os.fdopen(report) as said:
            self.said: dict[str, Any] = json.loads(said.readline() or "{}")
        self.port = self.said.get("port", -1)

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def net(self) -> str:
        return f"ipc://{self.folder / NET}"

    def tell(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class Peer:
    """A process of a machine: calls by its messenger, or is a rank; both by hand."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], messenger: Messenger, rank: str | None = None) -> None:
        self.socket = context.socket(zmq.DEALER if rank is None else zmq.ROUTER)
        self.socket.linger = 0
        self.socket.set_hwm(0)
        self.socket.rcvtimeo = SECONDS * 1000
        self.number = 0
        if rank is None:
            self.socket.connect(f"ipc://{messenger.folder / MESSENGER}")
        else:
            self.socket.bind(f"ipc://{messenger.folder / rank}")

    def call(self, to: Address, *body: bytes, kind: int = CALL) -> int:
        """Send a request; its number."""
        self.number += 1
        self.socket.send_multipart([to.to(), head(kind, self.number), *body])
        return self.number

    def answer(self) -> tuple[int, int, list[bytes]]:
        """The next answer: kind, number, body."""
        first, *body = self.socket.recv_multipart()
        return (*answer_head(first), body)

    def request(self) -> tuple[bytes, int, int, list[bytes]]:
        """The next request, of a rank: whose, kind, number, body."""
        caller, first, *body = self.socket.recv_multipart()
        return (caller, *request_head(first), body)

    def echo(self) -> None:
        """Answer the next request with what is in it."""
        caller, _, number, body = self.request()
        self.socket.send_multipart([caller, head(VALUE, number), *body])
