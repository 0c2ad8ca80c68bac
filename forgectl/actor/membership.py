"""How a process takes part in the messages of a run whose handles it has."""

from __future__ import annotations

import os

from forgectl.actor.origin import Origin
from forgectl.errors import UnreachableError
from forgectl.messages.calling import Here
from forgectl.system.processes import boot_id


def here_of(origin: Origin) -> tuple[Here, str]:
    """How this process takes part in messages, and its agent's socket; raises UnreachableError outside the run."""
    if os.environ.get("FORGE_RUN_ID") == origin.run and (folder := os.environ.get("FORGE_MESSAGES")):
        return Here(folder, os.environ.get("FORGE_PLACE", "")), os.environ["FORGE_AGENT"]
    if boot_id() == origin.machine:
        return Here(origin.folder, ""), origin.agent
    raise UnreachableError(
        f"a handle of run {origin.run} cannot be used here: this process is not one of that run",
        hint="handles work in the run's own processes, and in others on the machine that launched it",
    )
