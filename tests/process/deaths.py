"""What tests need to kill parts of a run and to see who lives on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgectl.controller import journal
from forgectl.controller.records import Born, Record
from tests.conftest import Forge, processes_of, until

RANKS = "{run: PROGRAMS/stay.py, procs: 2, preload: []}"


def end(pid: int, signum: int = signal.SIGKILL) -> None:
    """Signal a process and wait until it has ended; it may have ended before."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signum)
            assert select.select([pidfd], [], [], 30)[0], f"{pid} outlived signal {signum}"
        finally:
            os.close(pidfd)


def lives(pid: int) -> bool:
    """Whether there is a process of that pid that is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def controller_of(forge: Forge, run: str) -> int:
    """The pid of the run's one controller, once those that came too late have gone."""
    [pid] = until(lambda: len(found := forge.roles(run)["controller"]) == 1 and found, f"one controller of {run}")
    return int(pid)


def end_controller(forge: Forge, run: str) -> None:
    end(controller_of(forge, run))


def agent_of(forge: Forge, run: str) -> int:
    """The pid of the agent on the run's first host."""
    pid: int = forge.document(run)["hosts"][0]["agent_pid"]
    return pid


def pids(mesh: dict[str, Any]) -> list[int]:
    return [r["pid"] for r in mesh["ranks"]]


def until_empty(run: str) -> None:
    """Wait until no process of the run is left, without asking forgectl for anything."""
    until(lambda: not processes_of(run), f"the end of all processes of {run}")


def run_named(forge: Forge, name: str) -> str:
    """The id of the one run of that name, once there is one."""
    [run] = until(lambda: [r for r in forge.runs() if r.startswith(f"{name}-")], f"the run {name}")
    return str(run)


def until_generation(forge: Forge, run: str, mesh: str, generation: int) -> dict[str, Any]:
    """The mesh once this generation of it runs."""
    return forge.until_mesh(run, mesh, lambda m: m["generation"] == generation and m["state"] == "running")


def records(forge: Forge, run: str) -> list[Record]:
    """The run's journal, which must be whole."""
    found, whole = journal.read(forge.run_dir(run) / "events.jsonl")
    assert whole
    return [record for _, record in found]


def births(forge: Forge, run: str) -> int:
    """How many controllers the run has had, by its journal."""
    return sum(isinstance(r, Born) for r in records(forge, run))


def rewrite_journal(forge: Forge, run: str, change: Callable[[Record], Record]) -> None:
    """Put other records in place of the run's; to its readers the journal is whole."""
    path = forge.run_dir(run) / "events.jsonl"
    found, whole = journal.read(path)
    assert whole
    path.unlink()
    writer = journal.Journal(path)
    for when, record in found:
        writer.append(when, change(record))
    writer.close()
