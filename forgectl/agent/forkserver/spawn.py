"""Starts the process of a fork server; forks.py then reads what it sends."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from forgectl.agent import bootstrap
from forgectl.frozen import dataclass
from forgectl.model.plan import ForkServerPlan


@dataclass(frozen=True)
class StartedForkServer:
    """A fork server that has been started, with our end of its socket."""

    plan: ForkServerPlan
    log: Path
    pid: int
    socket: socket.socket


def begin(plan: ForkServerPlan, log: Path) -> StartedForkServer:
    """Start a fork server, a child that dies with this process; raises OSError."""
    python, _, setup, _, *variables = fields(plan, log)
    pid, ours = bootstrap.spawn(python, os.fsencode(log), setup, variables)
    return StartedForkServer(plan, log, pid, socket.socket(fileno=ours.detach()))


def fields(plan: ForkServerPlan, log: Path) -> list[bytes]:
    """What the agent's first process (bootstrap.py) reads of a fork server."""
    setup = {"workdir": plan.workdir, "preload": list(plan.preload)}
    variables = [os.fsencode(f"{name}={value}") for name, value in plan.env]
    head = [os.fsencode(plan.python), os.fsencode(log), json.dumps(setup).encode(), b"%d" % len(variables)]
    return [*head, *variables]


def log_of(run_dir: Path, host: str, number: int) -> Path:
    """The log of the host's fork server of that number."""
    return run_dir / "agents" / f"{host}.forkserver-{number}.log"


def lock_of(run_dir: Path, host: str) -> Path:
    """The lock that the run's one agent on the host holds."""
    return run_dir / "agents" / f"{host}.lock"
