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

    `handed`, descriptors where there are any: an open connection to the relay of an ssh host and a pidfd of its ssh, or
    the pipe of an agent here that was started before.
    """
    if host.local:
        return LocalWay(agent_socket, host.python, *handed)
    from forgectl.protocol.host_survey import RELAY_TO_LAUNCHER
    from forgectl.transport.destination import Destination
    from forgectl.transport.remote import SshWay  # most runs have no ssh host, and begin a hundredth of a second sooner
    from forgectl.transport.ssh import RelayConnection
    from forgectl.wire.unix_sockets import Connection

    to = Destination(host.name, host.ssh or host.name, host.python, host.root)
    relay = None
    if handed:
        connection, ssh = handed
        relay = RelayConnection(to, Connection(socket.socket(fileno=connection), RELAY_TO_LAUNCHER), pidfd=ssh)
    return SshWay(to, str(agent_socket), relay)
