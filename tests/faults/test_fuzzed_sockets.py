"""Random messages, nearly right, on each socket of a run: only their own connections suffer, and the run goes on.

tests/process/test_hostile_sockets.py has the garbage that was thought of; here it is made from a printed seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgectl import __version__
from forgectl.protocol.control import CLI_TO_CONTROLLER
from forgectl.protocol.endpoint_calls import CLI_TO_DRIVER
from forgectl.protocol.supervision import CONTROLLER_TO_AGENT, FOLLOWER_TO_AGENT
from tests.conftest import Forge, until
from tests.process.actor_scripts import background

STAY = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: [], restart: {max: 9, backoff: 0}}}"
CONNECTIONS = 150
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 10**400, 1.5, float("nan"), "", "stay", "../x", "\ud800", "x" * 5000, [], [None], {},
    {"": []}, {"stay": [0, 1]}, [["stay", 0]], {"type": "Hello"}, [[[[[[]]]]]],
)  # fmt: skip


def message(kinds: tuple[type, ...], chance: random.Random) -> dict[str, Any]:
    """A message of one of the kinds, of which at least one field cannot be right."""
    kind = chance.choice(kinds)
    fields = {field.name: chance.choice(VALUES) for field in dataclasses.fields(kind)}
    fields[chance.choice([*fields, "more"])] = {"no": ["such", {"value": None}]}
    if chance.random() < 0.2 and fields:
        del fields[chance.choice(list(fields))]
    return {"type": kind.__name__, **fields, "wrong": True}


def spoilt(line: bytes, chance: random.Random) -> bytes:
    """The line with some bytes changed, cut out or doubled."""
    data = bytearray(line)
    for _ in range(chance.choice((0, 0, 1, 3, 20))):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        data = data or bytearray(b"x")
    return bytes(data)


def attack(path: Path, run: str, kinds: tuple[type, ...], chance: random.Random) -> None:
    """One connection: perhaps with a greeting, some messages in pieces of any size, and an end at any moment."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(ConnectionError, TimeoutError):
        with open_folder(path.parent) as folder:
            sock.connect(f"/proc/self/fd/{folder}/{path.name}")  # the address of a socket is at most 107 bytes
        sock.settimeout(chance.choice((0.01, 5.0)))
        hello = {"type": "Hello", "version": __version__, "run": run, "since": 0, "of": 0}
        lines = [json.dumps(hello).encode()] if chance.random() < 0.7 else []
        lines += [spoilt(json.dumps(message(kinds, chance)).encode(), chance) for _ in range(chance.randrange(1, 6))]
        data = b"\n".join(lines) + b"\n" * chance.randrange(2)
        while data:
            size = chance.choice((1, 7, 1000, 1 << 20))
            sock.sendall(data[:size])
            data = data[size:]
        if chance.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def check_no_fault(forge: Forge, run: str) -> None:
    for log in (forge.run_dir(run) / "controller.log", *forge.run_dir(run).glob("agents/*.log")):
        text = log.read_text(errors="replace") if log.exists() else ""
        assert "Traceback" not in text, text[-3000:]


@pytest.mark.parametrize("door", ["control", "agent-0"])
def test_the_controller_and_the_agent(forge: Forge, door: str, chance: random.Random) -> None:
    run = forge.launch(STAY)
    before = [r["pid"] for r in forge.mesh(run, "stay")["ranks"]]
    owners = forge.roles(run)
    kinds = CLI_TO_CONTROLLER if door == "control" else (*CONTROLLER_TO_AGENT, *FOLLOWER_TO_AGENT)
    for _ in range(CONNECTIONS):
        attack(forge.home / "sockets" / run / door, run, kinds, chance)
    mesh = forge.until_state(run, "stay", "running")
    assert (mesh["generation"], [r["pid"] for r in mesh["ranks"]]) == (0, before)
    assert {role: forge.roles(run)[role] for role in ("controller", "agent")} == {
        role: owners[role] for role in ("controller", "agent")
    }
    check_no_fault(forge, run)
    forge.ok("shutdown", "--run", run)


def test_the_driver(forge: Forge, chance: random.Random) -> None:
    script = background(forge, "play_chaos.py call_for_ever")
    [run] = forge.runs()
    path = forge.home / "sockets" / run / "driver"
    until(path.exists, "its socket")
    for _ in range(CONNECTIONS):
        attack(path, run, CLI_TO_DRIVER, chance)
    assert "endpoints" not in forge.ok("call", f"{run}/pair", "add", "1")
    (forge.folder / "end").touch()
    _, err = script.communicate(timeout=60)
    assert (script.returncode, err) == (0, "")
    check_no_fault(forge, run)


def test_ranks_that_are_asked_for_their_stacks(forge: Forge, chance: random.Random) -> None:
    """A rank answers whoever connects at once, reads nothing, and goes on."""
    run = forge.launch(STAY)
    mesh = forge.mesh(run, "stay")
    sockets = until(lambda: list((forge.home / "sockets" / run).rglob("*.sock")), "their sockets")
    for path in sockets:
        for _ in range(CONNECTIONS // 3):
            attack(path, run, CLI_TO_CONTROLLER, chance)
    shown = json.loads(forge.ok("stack", f"{run}/stay", "--json"))
    assert "stay.py" in json.dumps(shown)
    assert forge.mesh(run, "stay")["ranks"][0]["pid"] == mesh["ranks"][0]["pid"]
    forge.ok("shutdown", "--run", run)
