"""A mesh in the hands of another process than its driver: an actor that was handed a handle."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgectl.actor.endpoint import Interface
from forgectl.actor.mesh import Mesh, died
from forgectl.actor.shells import Shells
from forgectl.errors import ForgeError

if TYPE_CHECKING:
    from forgectl.actor.home import Home


class ForeignMesh:
    """One generation of a mesh. When that dies its calls raise ActorDied; what comes after it only the driver has."""

    def __init__(
        self, name: str, interface: Interface, procs: int, run_dir: str, generation: int, monarchs: Any
    ) -> None:
        self.name = name
        self.interface = interface
        self.procs = procs
        self._parts = (name, interface, procs, run_dir, generation, monarchs)
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
            follow(self._parts[3], self.name, self._take)
        return self._shells

    async def shells(self) -> Shells:
        """The same."""
        return self.now() or self._shells

    def _take(self, document: dict[str, Any]) -> None:
        if document["state"] not in ("starting", "ready") or document["generation"] != self._shells.generation:
            self._shells.die(died(document, mesh=self.name))

    async def shutdown(self, grace: float) -> None:
        """Not here: raises ForgeError."""
        raise ForgeError(f"mesh {self.name} is shut down by the driver that launched it, not by an actor")


def _found(name: str, interface: Interface, procs: int, run_dir: str, generation: int, monarchs: Any) -> Mesh:
    """The mesh that this process launched itself, when its handle comes back; else a foreign one."""
    home = _this_process_s_home()
    mesh = home.meshes.get(name) if home is not None and str(home.run.path) == run_dir else None
    return mesh or ForeignMesh(name, interface, procs, run_dir, generation, monarchs)


def _this_process_s_home() -> Home | None:
    """Where this process drives a run it has imported what that takes; ranks need not."""
    module = sys.modules.get("forgectl.actor.home")
    return module.living_home() if module else None


_followed: dict[str, Home] = {}
_lock = threading.Lock()


def follow(run_dir: str, mesh: str, watcher: Any) -> None:
    """Have `watcher` told of a mesh of a run, where the run's controller can be reached from here."""
    with _lock:
        from forgectl.actor.home import Home
        from forgectl.controller.rundir import RunDir

        home = _followed.get(run_dir)
        if home is None:
            run = RunDir(Path(run_dir))
            if not run.control_socket.exists():
                return  # another host: Monarch's own notice, some seconds later, must do
            home = _followed[run_dir] = Home(run, run.read_plan(), own=False)
    home.loop.call_soon_threadsafe(home.watch, mesh, watcher)
