"""All that knows Monarch, with the actor that it is given (shell.py): a client, its meshes, a host's worker."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgectl.actor.forge_actor import ForgeActor
from forgectl.errors import UnreachableError
from forgectl.frozen import dataclass

os.environ.setdefault("MONARCH_FILE_LOG", "error")  # its log is one file of all programs of a user, in /tmp
import monarch.actor as monarch
from monarch._rust_bindings.monarch_hyperactor.config import configure, reload_config_from_env
from monarch._rust_bindings.monarch_hyperactor.host_mesh import BootstrapCommand
from monarch._rust_bindings.monarch_hyperactor.supervision import SupervisionError

if TYPE_CHECKING:  # no rank needs the protocol
    from forgectl.protocol import Membership

monarch.Actor.register(ForgeActor)  # what performs it is one (shell.py); the class itself need not know Monarch
Actor: Any = monarch.Actor
ActorError = monarch.ActorError
ValueMesh = monarch.ValueMesh
concurrent_endpoint: Any = monarch.concurrent_endpoint
current_rank = monarch.current_rank
current_size = monarch.current_size

__all__ = [
    "Actor",
    "ActorError",
    "HostWorker",
    "Spawned",
    "SupervisionError",
    "Tls",
    "ValueMesh",
    "concurrent_endpoint",
    "current_rank",
    "current_size",
    "open_port",
    "serve_worker",
    "spawn",
    "start_client",
]

PATIENCE: dict[str, Any] = dict.fromkeys(
    (
        "host_spawn_ready_timeout",
        "mesh_proc_spawn_max_idle",
        "actor_spawn_max_idle",
        "mesh_attach_config_timeout",
        "message_delivery_timeout",
        "channel_reconnect_timeout",
        "pending_actor_delivery_timeout",
        "get_actor_state_max_idle",
        "get_proc_state_max_idle",
        "supervision_watchdog_timeout",
    ),
    "1h",
)
"""Agents tell of deaths, and leases of hosts that are cut off, so no timeout of Monarch's has to guess: a rank may take
long to import what it needs, and a link may be down for as long as the lease."""
PATIENCE["mesh_orphan_timeout"] = None  # it compares clocks of two hosts: a skew of a minute would end all ranks

DIMENSION = "procs"
"""The one dimension of every mesh: `handle.slice(procs=0)`."""
GATEWAY_SECONDS = 10.0
"""How long the gateway may take to accept a connection."""
LEAVE_SECONDS = 1.0
"""How long the end of a client waits for what it still has to send; Monarch's own limit."""


@dataclass(frozen=True)
class Tls:
    """How a client takes part in a run of several machines: `address` or `gateway` is given.

    `address` is one of this machine that every host can dial, and that `identity` is issued for; this process listens
    there. Where hosts cannot dial it, it listens nowhere, and all goes through the worker `gateway` ("tls://…"); when
    that is gone, so is every host.
    """

    identity: Membership
    address: str = ""
    gateway: str = ""


@dataclass(frozen=True)
class HostWorker:
    """Monarch's worker on another machine, and the interpreter that it starts forwarders with."""

    address: str  # "tls://10.0.0.2:41234"
    python: str


@dataclass(frozen=True)
class Spawned:
    """One generation of a mesh as Monarch sees it: its processes, and the shell in each."""

    procs: Any
    shells: Any

    async def drop(self) -> None:
        """Have Monarch forget it, once its processes are gone."""
        with contextlib.suppress(Exception):  # it complains of their death
            await asyncio.wait_for(self.procs.stop(), 10)


def start_client(folder: Path, tls: Tls | None = None) -> None:
    """Make this process the run's one Monarch client, with its sockets in `folder`, which is ours alone (0700).

    Without `tls` it has Unix sockets alone, and the run is on this machine. Raises UnreachableError for a gateway that
    does not answer.
    """
    # A fault ends this process by default. Ours are told of by the agents, sooner and with their cause.
    monarch.unhandled_fault_hook = lambda failure: None
    if tls is not None:
        _become(tls.identity.certificate, tls.identity.key, tls.identity.authority)
    configure(**PATIENCE)
    listens = tls is not None and not tls.gateway
    monarch.enable_transport(_url(tls.address, "0") if tls and listens else f"ipc://{folder}/monarch-{os.getpid()}")
    with _temporary_files_in(folder), _without_greeting():  # where the ranks that it starts will listen
        if tls is not None and tls.gateway:
            _attach(tls.gateway)
        monarch.context()
    atexit.register(_leave)


def _become(certificate: str, key: str, authority: str) -> None:
    """Have Monarch know who this process is, and nobody else: what it starts inherits nothing of it."""
    variables = {"HYPERACTOR_TLS_CERT": certificate, "HYPERACTOR_TLS_KEY": key, "HYPERACTOR_TLS_CA": authority}
    os.environ.update(variables)
    try:
        reload_config_from_env()
    finally:
        for name in variables:
            del os.environ[name]


def _url(address: str, port: str) -> str:
    return f"tls://[{address}]:{port}" if ":" in address else f"tls://{address}:{port}"


def _attach(gateway: str) -> None:
    """Take part through another worker. It must come before all that has an address of this client in it."""
    host, _, port = gateway.removeprefix("tls://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), GATEWAY_SECONDS).close()  # Monarch would try for 30 s
        monarch.attach(gateway)
    except Exception as e:  # Monarch's are of no narrower type
        hint = "is its agent alive, and is there a firewall between this machine and that host?"
        raise UnreachableError(f"the run's actors cannot be reached through {gateway}: {e}", hint=hint) from None


def _leave() -> None:
    """What Monarch would do at exit, less its complaint about hosts that are gone."""
    with contextlib.suppress(Exception):
        monarch.shutdown_context(host_timeout=LEAVE_SECONDS / 3).get(timeout=LEAVE_SECONDS)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """Keep the line about its log, which a new client prints, off the terminal; whatever else comes is shown."""
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(b"Monarch internal logs are being written"):
                    os.write(2, line)


def open_port() -> tuple[Any, Any]:
    """A port that ranks may send to, and the receiver whose `recv()` awaits what they send."""
    port, receiver = monarch.Channel.open()
    return port, receiver


def spawn(
    name: str,
    procs: int,
    forwarder: Callable[[int], list[str]],
    hosts: Sequence[HostWorker | None] | None = None,
) -> Spawned:
    """Start a mesh of `procs` ranks with an empty shell in each.

    Each rank is started by an interpreter with the arguments `forwarder(rank)`: by `hosts[rank]`, or where that is None
    by this process. Needs a client with `tls` for any host.
    """
    from forgectl.actor.shell import Shell

    def command(point: Any) -> BootstrapCommand:
        host = hosts[point.rank] if hosts else None
        return BootstrapCommand(host.python if host else sys.executable, None, forwarder(point.rank), {})

    # All return at once; what is sent to the shells waits for them.
    if hosts and any(hosts):
        # One entry a rank, the same worker as often as it has ranks: so they may be spread as one likes.
        workers = [host.address if host else _own_address() for host in hosts]
        places = monarch.attach_to_workers(ca="trust_all_connections", workers=workers, name=name)
        mesh = places.rename(hosts=DIMENSION).spawn_procs(name=name, bootstrap_command=command)
    else:
        mesh = monarch.this_host().spawn_procs(per_host={DIMENSION: procs}, name=name, bootstrap_command=command)
    return Spawned(mesh, mesh.spawn(name, Shell))


def _own_address() -> str:
    """The worker in this client, as it is reached from anywhere: through the gateway, where there is one."""
    return "service@" + str(monarch.context().actor_instance.actor_id).partition("@")[2]


def serve_worker(
    listener: int, address: str, ready: Callable[[], None], *, certificate: str, key: str, authority: str
) -> None:
    """Be the Monarch worker of this host, on the bound TCP socket `listener` of `address`, until killed.

    `ready` is called once it serves. `trust_all_connections` is what Monarch has the caller say; the transport itself
    refuses whoever has no certificate of `authority`.
    """
    _become(certificate, key, authority)
    with _without_greeting():
        serving = monarch.start_worker_loop_forever(address=_url(address, f"fd{listener}"), ca="trust_all_connections")
    ready()
    serving.get()
