"""The beginning of a fork server: its process, before anybody hears what it says."""

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
    """A fork server that has been started, with our end of what it is spoken to through."""

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
    """What the agent's first process reads of a fork server."""
    setup = {"workdir": plan.workdir, "preload": list(plan.preload)}
    variables = [os.fsencode(f"{name}={value}") for name, value in plan.env]
    told = [os.fsencode(plan.python), os.fsencode(log), json.dumps(setup).encode(), b"%d" % len(variables)]
    return [*told, *variables]


def log_of(run_dir: Path, host: str, number: int) -> Path:
    """Where the host's fork server of that number writes what it says."""
    return run_dir / "agents" / f"{host}.forkserver-{number}.log"


def lock_of(run_dir: Path, host: str) -> Path:
    """What the host's one agent of the run holds."""
    return run_dir / "agents" / f"{host}.lock"
