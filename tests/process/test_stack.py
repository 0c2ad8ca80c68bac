"""`forgectl stack` of real ranks that hang: each rank's line, and the verdict."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS, Forge, listening_ports, until

LINES = (PROGRAMS / "get_stuck.py").read_text().splitlines()


def seen(forge: Forge) -> dict[str, Any]:
    mesh: dict[str, Any] = json.loads(forge.ok("stack", "--json"))["meshes"][0]
    return mesh


def until_kind(forge: Forge, *kinds: str) -> dict[str, Any]:
    """What is seen once ranks have waited for long enough to be taken for waiting."""
    found: dict[str, Any] = until(lambda: (m := seen(forge))["verdict"]["kind"] in kinds and m, " or ".join(kinds))
    return found


def launch(forge: Forge, how: str) -> str:
    return forge.launch(f"name: hang\nscripts: {{hang: {{run: PROGRAMS/get_stuck.py {how}, procs: 3}}}}")


@pytest.mark.parametrize(
    ("how", "line", "source"),
    [
        ("read", "os.read(", "rank"),
        ("loop", "pass", "rank"),
        ("lock", "lock.acquire()", "rank"),
        ("gil", "ctypes.PyDLL(None).read(", "signal"),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_line(forge: Forge, how: str, line: str, source: str) -> None:
    run = launch(forge, how)
    mesh = until_kind(forge, "missing")
    assert mesh["verdict"]["suspects"] == [1]
    assert mesh["verdict"]["waiting"] == [0, 2]
    rank = mesh["ranks"][1]
    frame = rank["threads"][0]["frames"][0]
    assert rank["source"] == source
    assert frame["function"] == "stuck"
    assert line in LINES[frame["line"] - 1] or (how == "loop" and "while True" in LINES[frame["line"] - 1])
    assert "all_reduce" in mesh["places"][0]["where"]
    assert Path(frame["file"]).name == "get_stuck.py"
    pids = {r["pid"] for r in mesh["ranks"]}
    store = forge.roles(run)["forkserver"]
    assert {address for address, _ in listening_ports(pids | set(store))} <= {"127.0.0.1"}


def test_a_stopped_rank_and_another_order_are_said(forge: Forge) -> None:
    launch(forge, "order")
    mesh = until_kind(forge, "mismatch")
    assert mesh["verdict"]["suspects"] == [1]
    assert "broadcast" in mesh["verdict"]["text"]
    os.kill(mesh["ranks"][1]["pid"], signal.SIGSTOP)
    text = until(lambda: "SIGSTOP" in (out := forge.ok("stack")) and out, "the stopped rank")
    assert "[1]" in text
    assert "[0,2]" in text
