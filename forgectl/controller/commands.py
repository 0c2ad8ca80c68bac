"""The commands for the agents, given a run's state. Pure; every command may be sent again after a reconnection.

`commands` gives all commands for a host, or a part of them: `changes.py` finds the part that a record may change.
"""

from __future__ import annotations

from collections.abc import Collection

from forgectl.controller.mesh_news import news, stop
from forgectl.controller.run_state import Run
from forgectl.controller.state import MeshState
from forgectl.plan.links import dials, messengers
from forgectl.plan.shares import share_of
from forgectl.protocol.supervision import (
    Links,
    MeshNews,
    OpenMessenger,
    OpenStore,
    Prepare,
    Quit,
    Release,
    Start,
    Stop,
    Tunnel,
)

Command = Prepare | OpenStore | OpenMessenger | Links | MeshNews | Start | Stop | Release | Quit


HOST = ""
"""The subject of commands about the host itself: its messenger and its end. Other subjects are names of meshes."""


def commands(run: Run, host: str, subjects: Collection[str] | None = None) -> list[Command]:
    """What `host`'s agent should be doing now, in order; if `subjects` are given, only commands about them."""
    on_host = subjects is None or HOST in subjects
    if run.ended:
        return [Quit()] if on_host else []
    meshes = list(run.meshes.values() if subjects is None else (run.meshes[s] for s in subjects if s != HOST))
    found: list[Command] = [Release(m.name, m.left[host]) for m in meshes if host in m.left]
    found += _for_messenger(run, host) if on_host else []
    found += [news(m, run.hosts) for m in meshes if m.plan.is_asked]
    here = (_for_mesh(run, mesh, host) for mesh in meshes if host in mesh.plan.by_host)
    return [*found, *(command for command in here if command is not None)]


def last_commands(run: Run, host: str) -> list[Stop]:
    """The commands to `host`'s agent before the host is given up: end all ranks, but keep the logs."""
    return [Stop(m.name, m.generation, 0.0) for m in run.meshes.values() if host in m.plan.by_host and not m.ended]


def _for_messenger(run: Run, name: str) -> list[Command]:
    """Commands for a messenger on each ssh host with actors, one here as soon as there is such a host, and links."""
    actors = [m for m in run.meshes.values() if m.plan.stays]
    host, hosts = run.hosts[name], messengers(run.plan) if actors else ()
    if host.plan not in hosts:
        return []
    away = {h for m in actors if not m.ended for h in m.plan.hosts if not run.hosts[h].plan.local}
    if host.messenger is None:
        needed = bool(away) if host.plan.local else name in away
        return [OpenMessenger(host.messengers_lost)] if needed else []
    links = Links(sum(h.messengers_lost for h in run.hosts.values()), {})
    for other in hosts:
        there = run.hosts[other.name].messenger
        if there is None or other is host.plan or not dials(host.plan, other):
            continue
        if there.port and other.name in host.plan.reaches:
            address = f"[{other.address}]" if ":" in other.address else other.address
            links.dialled[other.place] = f"tcp://{address}:{there.port}"
        else:
            links.tunnels[other.place] = Tunnel(
                other.name, other.ssh or other.name, other.python, there.socket, other.root
            )
    return [links]


def _for_mesh(run: Run, mesh: MeshState, host: str) -> Command | None:
    if mesh.ended:
        return Release(mesh.name, mesh.first)
    if mesh.ending:
        return None if host in mesh.gone else stop(mesh)
    if mesh.needs_hosts:
        return None
    if host not in mesh.prepared:
        return Prepare(share_of(mesh.plan, run.hosts[host].plan), mesh.first, mesh.before)
    if mesh.state != "starting":
        return None
    first = mesh.plan.hosts[0]
    address = run.hosts[first].plan.address if len(mesh.plan.hosts) > 1 else "127.0.0.1"
    if mesh.port is None:
        return OpenStore(mesh.name, mesh.generation, address) if host == first else None
    return Start(mesh.name, mesh.generation, address, mesh.port)


def key(command: Command) -> tuple[object, ...]:
    """Equal for commands that are the same, so that none is sent twice over one connection."""
    if isinstance(command, MeshNews):
        return (MeshNews, command.mesh, command.generation, command.state)  # each has one text: see mesh_news.py
    if isinstance(command, Links):
        return (Links, command.generation, *command.dialled.items(), *command.tunnels.items())
    generation = getattr(command, "generation", None)
    name = command.mesh.mesh if isinstance(command, Prepare) else getattr(command, "mesh", None)
    return (type(command), name, generation, getattr(command, "grace", None))
