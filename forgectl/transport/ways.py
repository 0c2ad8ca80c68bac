"""Chooses how the agent of a host is reached."""

from __future__ import annotations

import socket
from pathlib import Path

from forgectl.plan.model import HostPlan
from forgectl.transport.local import LocalWay
from forgectl.transport.remote import SshWay
from forgectl.transport.ssh import Destination


def way_to(host: HostPlan, agent_socket: Path, handed: int | None) -> LocalWay | SshWay:
    """The way to the agent at `agent_socket` on a host. `handed`: an open connection to the relay of an ssh host."""
    if host.local:
        return LocalWay(agent_socket, host.python)
    connection = socket.socket(fileno=handed) if handed is not None else None
    return SshWay(Destination(host.name, host.ssh or host.name, host.python), str(agent_socket), connection)
