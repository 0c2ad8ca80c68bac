"""All that knows Monarch, with the actor that it is given (shell.py): start a client, spawn a mesh, serve as a rank."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgectl.actor.forge_actor import ForgeActor

os.environ.setdefault("MONARCH_FILE_LOG", "error")  # its log is one file of all programs of a user, in /tmp
import monarch.actor as monarch
from monarch._rust_bindings.monarch_hyperactor.config import configure
from monarch._rust_bindings.monarch_hyperactor.host_mesh import BootstrapCommand
from monarch._rust_bindings.monarch_hyperactor.supervision import SupervisionError

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
    "Spawned",
    "SupervisionError",
    "ValueMesh",
    "concurrent_endpoint",
    "current_rank",
    "current_size",
    "open_port",
    "spawn",
    "start_client",
]

LONG = "1h"
"""How long a rank may take to import what it needs: its death is told by its agent, so no timeout has to guess it."""

DIMENSION = "procs"
"""The one dimension of every mesh: `handle.slice(procs=0)`."""


@dataclass(frozen=True)
class Spawned:
    """One generation of a mesh as Monarch sees it: its processes, and the shell in each."""

    procs: Any
    shells: Any

    async def drop(self) -> None:
        """Have Monarch forget it, once its processes are gone."""
        with contextlib.suppress(Exception):  # it complains of their death
            await asyncio.wait_for(self.procs.stop(), 10)


def start_client(folder: Path) -> None:
    """Make this process the run's one Monarch client, with its sockets in `folder`, which is ours alone (0700)."""
    # A fault ends this process by default. Ours are told of by the agents, sooner and with their cause.
    monarch.unhandled_fault_hook = lambda failure: None
    configure(host_spawn_ready_timeout=LONG, mesh_proc_spawn_max_idle=LONG, actor_spawn_max_idle=LONG)
    monarch.enable_transport(f"ipc://{folder}/monarch-{os.getpid()}")
    with _temporary_files_in(folder), _without_greeting():  # where the ranks that it starts will listen
        monarch.context()


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


def spawn(name: str, procs: int, forwarder: Callable[[int], list[str]]) -> Spawned:
    """Start a mesh of `procs` ranks, each through the command `forwarder(rank)`, with an empty shell in each."""
    from forgectl.actor.shell import Shell

    def command(point: Any) -> BootstrapCommand:
        return BootstrapCommand(sys.executable, None, forwarder(point.rank), {})

    # Both return at once; what is sent to the shells waits for them.
    mesh = monarch.this_host().spawn_procs(per_host={DIMENSION: procs}, name=name, bootstrap_command=command)
    return Spawned(mesh, mesh.spawn(name, Shell))
