"""The folders that the processes of a run share on one host, for users' code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from forgectl.errors import UsageError
from forgectl.system.shared_folders import SharedFolders, shared_folders
from forgectl.wire.unix_sockets import private_folder


def shared_folder(*, on_disk: bool = False) -> Path:
    """A folder (0700) for files that processes of this run share on this host, such as weights; made when missing.

    It is in memory (/dev/shm), or `on_disk` in the directory of the run; on a machine without such memory always there.
    When the run ends on this host, however it ends, the folder is removed with all that it holds.

    Raises UsageError where this process belongs to no run, and OSError if the folder cannot be made.
    """
    folders = _of_the_environment() or _of_our_own_run()
    if folders is None:
        raise UsageError(
            "this process belongs to no run, so it has no folder to share",
            hint="call it in a script or an actor that forgectl launched, or after the first launch of this script",
        )
    return private_folder(folders.disk if on_disk else folders.memory)


def _of_the_environment() -> SharedFolders | None:
    memory, disk = os.environ.get("FORGE_SHARED_MEMORY"), os.environ.get("FORGE_SHARED_DISK")
    return SharedFolders(Path(memory), Path(disk)) if memory and disk else None


def _of_our_own_run() -> SharedFolders | None:
    if (run_client := sys.modules.get("forgectl.actor.driver.run_client")) is None:
        return None
    if (client := run_client.living_run_client()) is None:
        return None
    host = next(h.name for h in client.plan.hosts if h.local)
    return shared_folders(client.run.run, client.run.path, host)
