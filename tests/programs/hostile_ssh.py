"""Stands in place of ssh (FORGECTL_SSH): runs the remote command on this machine, and misbehaves as it was told to.

What it starts is the real relay, and through it a real agent; it only stands between them and forgectl. $HOSTILE names
a JSON file: host → what to do. It is read again for every connection; a host that it does not name is an honest one.

    after    the type of the message (of an Event: of what happened) that is passed on first; default: the first Synced
    events   things that happened, sent as further Events with the next numbers
    lines    sent as they are; an object as one line of JSON
    change   type → fields to put in place of its own, in every such message; where a field is a list: in each;
             with a type in place of all of it
    forever  send `events` and `lines` again and again
    hang_up  then end the connection
    drop     types of messages that are not passed on
    stderr   print without end
    first    misbehave only over so many first connections (counted in a file beside $HOSTILE)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PLAN = Path(os.environ["HOSTILE"])


def main() -> None:
    host, command = sys.argv[sys.argv.index("--") + 1 :]
    todo = json.loads(PLAN.read_text()).get(host, {})
    if "first" in todo and count(host) > todo["first"]:
        todo = {}
    relay = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert relay.stdin and relay.stdout
    threading.Thread(target=pass_up, args=[relay.stdin], daemon=True).start()
    if todo.get("stderr"):
        threading.Thread(target=print_errors, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        Middle(todo).pass_down(relay.stdout)
    relay.stdin.close() if not relay.stdin.closed else None
    os._exit(relay.wait())


def count(host: str) -> int:
    """Which connection to the host this is, from 1."""
    with PLAN.with_suffix(f".{host}").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("x")
        return file.tell()


def pass_up(relay: Any) -> None:
    while data := os.read(0, 1 << 16):
        relay.write(data)
        relay.flush()
    relay.close()


def print_errors() -> None:
    with contextlib.suppress(OSError):
        while True:
            os.write(2, b"all is lost, all is lost, all is lost, all is lost, all is lost!\n" * 1000)


class Middle:
    """What comes from the relay, as it is passed on."""

    def __init__(self, todo: dict[str, Any]) -> None:
        self.todo = todo
        self.seq = 0  # of the last Event that was passed on
        self.shift = 0  # how many were added to those of the agent

    def pass_down(self, relay: Any) -> None:
        for line in relay:
            message = parsed(line)
            name = type_of(message)
            if name in self.todo.get("drop", ()):
                continue
            self.send(line if message is None else encode(self.changed(message)))
            if self.todo and name == self.todo.get("after", "Synced"):
                self.misbehave()

    def changed(self, message: dict[str, Any]) -> dict[str, Any]:
        for inner in (message, message.get("what")):
            if isinstance(inner, dict) and (change := self.todo.get("change", {}).get(inner.get("type"))):
                inner.clear() if "type" in change else None
                put(inner, change)
        if message.get("type") == "Event" and isinstance(message.get("seq"), int):
            message["seq"] += self.shift
            self.seq = message["seq"]
        return message

    def misbehave(self) -> None:
        while True:
            told = b""
            for what in self.todo.get("events", ()):
                self.seq += 1
                self.shift += 1
                told += encode({"type": "Event", "seq": self.seq, "what": what})
            for line in self.todo.get("lines", ()):
                told += line.encode() if isinstance(line, str) else encode(line)
            self.send(told)
            if not self.todo.get("forever"):
                break
        if self.todo.get("hang_up"):
            os._exit(0)
        self.todo = {k: v for k, v in self.todo.items() if k in ("change", "drop")}

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]


def parsed(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        return message if isinstance(message, dict) and "type" in message else None
    return None


def type_of(message: dict[str, Any] | None) -> str:
    if message is None:
        return ""
    return str(message["what"]["type"] if message["type"] == "Event" else message["type"])


def put(target: dict[str, Any], change: dict[str, Any]) -> None:
    for field, value in change.items():
        if isinstance(value, dict) and isinstance(target.get(field), list):
            for each in target[field]:
                put(each, value)
        elif isinstance(value, dict) and isinstance(target.get(field), dict):
            put(target[field], value)
        else:
            target[field] = value


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


if __name__ == "__main__":
    main()
