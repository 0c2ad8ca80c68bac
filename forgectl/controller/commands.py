"""What the agents must be told, given a run's state. Pure; every command may be sent again after a reconnection."""

from __future__ import annotations

from forgectl.controller.run import Run
from forgectl.controller.state import Mesh
from forgectl.plan.localized import on_host
from forgectl.protocol import OpenStore, OpenWorker, Prepare, Quit, Release, Start, Stop

Command = Prepare | OpenStore | OpenWorker | Start | Stop | Release | Quit


def commands(run: Run, host: str) -> list[Command]:
    """What `host`'s agent should be doing now, in order."""
    if run.ended:
        return [Quit()]
    meshes = (_for_mesh(run, mesh, host) for mesh in run.meshes.values() if host in mesh.plan.hosts)
    return [*_for_host(run, host), *(command for command in meshes if command is not None)]


def _for_host(run: Run, name: str) -> list[Command]:
    """A worker of Monarch's on each ssh host that has actors; an end for what was moved away from there."""
    host = run.hosts[name]
    actors = any(m.plan.stays and name in m.plan.hosts and not m.ended for m in run.meshes.values())
    found: list[Command] = [Release(m.name, m.left[name]) for m in run.meshes.values() if name in m.left]
    if actors and not host.plan.local and host.worker is None:
        found.append(OpenWorker(host.plan.address, host.workers_lost))
    return found


def _for_mesh(run: Run, mesh: Mesh, host: str) -> Command | None:
    if mesh.ended:
        return Release(mesh.name, mesh.first)
    if mesh.ending:
        return None if host in mesh.gone else Stop(mesh.name, mesh.generation, mesh.grace)
    if mesh.homeless:
        return None
    if host not in mesh.prepared:
        return Prepare(on_host(mesh.plan, run.plan, run.hosts[host].plan), mesh.first, mesh.before)
    if mesh.state != "starting":
        return None
    first = mesh.plan.hosts[0]
    address = run.hosts[first].plan.address if len(mesh.plan.hosts) > 1 else "127.0.0.1"
    if mesh.port is None:
        return OpenStore(mesh.name, mesh.generation, address) if host == first else None
    return Start(mesh.name, mesh.generation, address, mesh.port)


def key(command: Command) -> tuple[object, ...]:
    """What makes two commands the same, so that none is sent twice over one connection."""
    generation = getattr(command, "generation", None)
    name = command.mesh.mesh if isinstance(command, Prepare) else getattr(command, "mesh", None)
    return (type(command), name, generation, getattr(command, "grace", None))
