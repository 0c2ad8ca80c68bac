"""A mesh in the hands of another process than its driver: an actor that was handed a handle."""

from __future__ import annotations

import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgectl.actor.endpoint import Interface
from forgectl.actor.mesh import Mesh, died
from forgectl.actor.shells import Shells
from forgectl.errors import ForgeError
from forgectl.processes import boot_id

if TYPE_CHECKING:
    from forgectl.actor.home import Home


class ForeignMesh:
    """One generation of a mesh. When that dies its calls raise ActorDied; what comes after it only the driver has.

    `home` is the driver's machine, by its boot id, and the run's directory there. Of deaths a process on that machine
    hears from the controller; others are told by the driver.
    """

    def __init__(
        self, name: str, interface: Interface, procs: int, home: tuple[str, str], generation: int, monarchs: Any
    ) -> None:
        self.name = name
        self.interface = interface
        self.procs = procs
        self._parts = (name, interface, procs, home, generation, monarchs)
        self._shells = Shells(name, generation, monarchs)
        self._followed = False

    def __reduce__(self) -> Any:
        return _found, self._parts

    def foreign(self) -> ForeignMesh:
        """Itself."""
        return self

    def now(self) -> Shells | None:
        """The generation that the handle was made of."""
        if not self._followed:
            self._followed = True
            machine, run_dir = self._parts[3]
            if machine != boot_id() or not follow(run_dir, self.name, self._take):
                _await_news(self)
        return self._shells

    async def shells(self) -> Shells:
        """The same."""
        return self.now() or self._shells

    def _take(self, document: dict[str, Any]) -> None:
        if document["state"] not in ("starting", "ready") or document["generation"] != self._shells.generation:
            self._shells.die(died(document, mesh=self.name))

    def lose(self, generation: int, document: dict[str, Any]) -> None:
        """All generations up to this one have ended, as its state tells. From any thread."""
        if self._shells.generation <= generation:
            self._shells.die(died(document, mesh=self.name))

    async def shutdown(self, grace: float) -> None:
        """Not here: raises ForgeError."""
        raise ForgeError(f"mesh {self.name} is shut down by the driver that launched it, not by an actor")


def _found(name: str, interface: Interface, procs: int, home: tuple[str, str], generation: int, monarchs: Any) -> Mesh:
    """The mesh that this process launched itself, when its handle comes back; else a foreign one."""
    ours = _this_process_s_home()
    mesh = ours.meshes.get(name) if ours is not None and (boot_id(), str(ours.run.path)) == home else None
    return mesh or ForeignMesh(name, interface, procs, home, generation, monarchs)


def _this_process_s_home() -> Home | None:
    """Where this process drives a run it has imported what that takes; ranks need not."""
    module = sys.modules.get("forgectl.actor.home")
    return module.living_home() if module else None


_followed: dict[str, Home] = {}
_lock = threading.Lock()


def follow(run_dir: str, mesh: str, watcher: Any) -> bool:
    """Have `watcher` told of a mesh of a run; False where its controller cannot be reached: in another container."""
    with _lock:
        from forgectl.actor.home import Home
        from forgectl.controller.rundir import RunDir

        home = _followed.get(run_dir)
        if home is None:
            run = RunDir(Path(run_dir))
            try:
                reachable = run.control_socket.exists()
            except OSError:
                reachable = False
            if not reachable:
                return False
            home = _followed[run_dir] = Home(run, run.read_plan(), own=False)
    home.loop.call_soon_threadsafe(home.watch, mesh, watcher)
    return True


_told: weakref.WeakSet[ForeignMesh] = weakref.WeakSet()
_news: dict[str, tuple[int, dict[str, Any]]] = {}
"""Mesh → the last generation that has ended, and the state that told of it: a handle of it may yet come."""


def _await_news(mesh: ForeignMesh) -> None:
    with _lock:
        _told.add(mesh)
        news = _news.get(mesh.name)
    if news is not None:
        mesh.lose(*news)


def hear(generation: int, document: dict[str, Any]) -> None:
    """Take the driver's word that this generation of a mesh has ended. From any thread."""
    with _lock:
        name = document["mesh"]
        _news[name] = generation, document
        meshes = [mesh for mesh in _told if mesh.name == name]
    for mesh in meshes:
        mesh.lose(generation, document)
