"""Chooses how the agent of a host is reached."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forgectl.model.plan import HostPlan
from forgectl.transport.local import LocalWay

if TYPE_CHECKING:
    from forgectl.transport.remote import SshWay


def way_to(host: HostPlan, agent_socket: Path, handed: Sequence[int]) -> LocalWay | SshWay:
    """The way to the agent at `agent_socket` on a host.

    `handed` may be empty. For an ssh host it has two descriptors: an open connection to its relay, and a pidfd of its
    ssh. For this machine it has one: the pipe of an agent that was started early.
    """
    if host.local:
        return LocalWay(agent_socket, host.python, *handed)
    from forgectl.protocol.host_survey import RELAY_TO_LAUNCHER
    from forgectl.transport.destination import Destination
    from forgectl.transport.remote import SshWay  # late: runs without ssh hosts begin a hundredth of a second sooner
    from forgectl.transport.ssh import RelayConnection
    from forgectl.wire.unix_sockets import Connection

    to = Destination(host.name, host.ssh or host.name, host.python, host.root)
    relay = None
    if handed:
        connection, ssh = handed
        relay = RelayConnection(to, Connection(socket.socket(fileno=connection), RELAY_TO_LAUNCHER), pidfd=ssh)
    return SshWay(to, str(agent_socket), relay)
