"""The run's driver: brings up what the spec declares, then runs the user's script or stays to serve calls."""

from __future__ import annotations

import importlib
import json
import os

from forgectl import boot
from forgectl.names import DRIVER

_run_dirs: dict[int, str] = {}
"""Process id of the driver → the directory of its run; a forked child inherits the entry, but has another id."""


def run_dir() -> str | None:
    """The directory of the run that this process drives; None where it drives none, as in children of a driver."""
    if not _run_dirs and os.environ.get("FORGE_MESH") == DRIVER:
        return os.environ.get("FORGE_RUN_DIR")  # a driver that is a command has only its environment
    return _run_dirs.get(os.getpid())


def begin(kind: str) -> bool:
    """Bring up the declared actors and services; a driver without a script serves until it must end, then False."""
    directory = os.environ.pop("FORGE_RUN_DIR")  # not for children
    _run_dirs[os.getpid()] = directory
    with open(os.path.join(directory, "plan.json")) as plan:  # noqa: PTH118
        if not json.load(plan)["declared"]:
            return True  # only a script: ForgeActor attaches to the run when it is used
    driver = importlib.import_module(boot.DRIVER)
    driver.bring_up()
    if kind == "resident":
        driver.stay()
        return False
    return True
