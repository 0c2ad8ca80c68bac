"""The beginning of a fork server: what it is to be, and its process, before anybody hears what it says."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forgectl.boot import BOOT
from forgectl.plan.model import MeshPlan
from forgectl.rank.title import PADDING

AHEAD = "forgectl.rank.ahead"
NOT_FOR_RANKS = frozenset({"FORGE_ROLE", "FORGE_MESH"})


@dataclass(frozen=True)
class Setting:
    """What makes two meshes share a fork server: equal settings."""

    python: str
    workdir: str
    preload: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


def setting_of(plan: MeshPlan, run: str, host: str, secrets: Mapping[str, str]) -> Setting:
    """The setting of a mesh on this host; raises KeyError for a secret that is not known."""
    env = {k: v for k, v in os.environ.items() if k not in NOT_FOR_RANKS}
    env |= plan.env[host]
    env |= {name: secrets[name] for name in plan.secrets}
    env |= {"FORGE_RUN_ID": run, "FORGE_HOST": host, "FORGE_ROLE": "forkserver"}
    preload = plan.preload if plan.start_method == "fork" and plan.program.kind != "command" else ()
    if preload and (plan.stays or plan.kind == "driver"):
        preload = (*preload, AHEAD)
    python = str(Path(plan.python[host]).expanduser()) if plan.python[host].startswith("~") else plan.python[host]
    return Setting(python, plan.workdir, preload, tuple(sorted(env.items())))


@dataclass(frozen=True)
class Warming:
    """A fork server that has been started, with our end of what it is spoken to through."""

    setting: Setting
    log: Path
    process: subprocess.Popen[bytes]
    socket: socket.socket


def begin(setting: Setting, log: Path) -> Warming:
    """Start a fork server, a child that dies with this process; raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        process = _start(setting, log, theirs.fileno())
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    setup = {"workdir": setting.workdir, "preload": list(setting.preload)}
    with contextlib.suppress(BrokenPipeError):  # it has ended: whoever waits for it is told
        ours.send(json.dumps(setup).encode())
    return Warming(setting, log, process, ours)


def _start(setting: Setting, log: Path, fd: int) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [setting.python, BOOT, "forkserver", str(fd), PADDING],
            env=dict(setting.env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[fd],
        )


def log_of(run_dir: Path, host: str, number: int) -> Path:
    """Where the host's fork server of that number writes what it says."""
    return run_dir / "agents" / f"{host}.forkserver-{number}.log"
