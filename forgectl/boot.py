"""Starts one of forgectl's own processes in any interpreter: `python boot.py agent|forkserver|rank|controller …`.

Run as a file, so that the interpreter of a mesh needs no installed forgectl. The path has this copy of the package
only until it is imported.
"""

import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

BOOT = str(Path(__file__).resolve())
"""This file, for the command lines that start our processes."""

ROLES = {
    "controller": "forgectl.controller.controller",
    "agent": "forgectl.agent.start",
    "forkserver": "forgectl.agent.forkserver.server",
    "rank": "forgectl.rank.script",
    "messenger": "forgectl.messages.messenger",
    "tunnel": "forgectl.transport.tunnel",
    "prune": "forgectl.controller.prune",
    "hook": "forgectl.controller.hook",
}


AHEAD = "forgectl.rank.ahead"
"""The module that a fork server of actors preloads, besides those of its mesh."""
ACTOR_RANK = "forgectl.actor.actor_rank"
"""The module with which a rank of an actor serves its callers."""
DRIVER = "forgectl.actor.driver.declared"
"""The module with which a driver launches declared actors."""
FORGE_ACTOR = "forgectl.actor.forge_actor"


class ReadyMadeActors:
    """Finds the package `actors` beside this copy of forgectl, where no module of the user's has that name."""

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """As of every finder of modules."""
        if name != "actors":
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [self._root])


def main() -> None:
    """Import the role's module and run its `main(arguments)`."""
    import importlib

    here = str(Path(__file__).resolve().parent)
    root = str(Path(__file__).resolve().parent.parent)
    sys.path[:] = [root, *(p for p in sys.path if p != here)]
    importlib.import_module("forgectl")
    sys.path.remove(root)  # from here on the package finds its own modules by itself
    sys.meta_path.append(ReadyMadeActors(root))
    then = importlib.import_module(ROLES[sys.argv[1]]).main(sys.argv[2:])
    if then is not None:  # in a forked rank: continue here, without the fork server's stack frames
        then()


if __name__ == "__main__":
    main()
