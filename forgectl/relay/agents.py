"""Reaches the agent of a run on this host, or starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from forgectl.agent import start_command
from forgectl.errors import UnreachableError
from forgectl.protocol.supervision import AgentConfig
from forgectl.wire.unix_sockets import dial, peer_pid, private_folder


def reach(path: Path) -> socket.socket | None:
    """A connection to the agent that listens at `path`; None if none does."""
    try:
        return dial(path, 5.0)
    except OSError:
        return None


def watch(agent: socket.socket) -> int | None:
    """A pidfd of the agent at the other end; None if it has ended already."""
    try:
        return os.pidfd_open(peer_pid(agent))
    except OSError:
        return None


def start(config: AgentConfig) -> int:
    """Start the agent under this interpreter; returns its pid once it listens.

    Raises UnreachableError with the last line that the agent printed.
    """
    try:
        for folder in (Path(config.run_dir).parent.parent, Path(config.run_dir).parent, Path(config.run_dir)):
            private_folder(folder)
        process = subprocess.run(
            start_command.command(sys.executable),
            env=start_command.environment(config),
            cwd="/",
            input=start_command.standard_input(config),
            capture_output=True,
            timeout=start_command.START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise start_command.too_slow(config) from None
    except OSError as e:
        raise UnreachableError(f"host {config.host}: its agent could not be started: {e}") from None
    return start_command.reported_pid(config, sys.executable, process.stdout, process.stderr, process.returncode)
