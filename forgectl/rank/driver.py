"""The run's driver: brings up what the spec declares, then runs the user's script, or stays and serves calls."""

from __future__ import annotations

import importlib
import json
import os

from forgectl import boot
from forgectl.names import DRIVER

_this_process: tuple[int, str] | None = None


def run_dir() -> str | None:
    """The directory of the run that this process drives. Its children drive nothing."""
    if _this_process is None and os.environ.get("FORGE_MESH") == DRIVER:
        return os.environ.get("FORGE_RUN_DIR")  # a command: it has the variables alone
    return _this_process[1] if _this_process and _this_process[0] == os.getpid() else None


def begin(kind: str) -> bool:
    """Bring up the declared actors and services; False once a driver without a script has been told to end."""
    global _this_process
    directory = os.environ.pop("FORGE_RUN_DIR")  # not for children
    _this_process = (os.getpid(), directory)
    with open(os.path.join(directory, "plan.json")) as plan:  # noqa: PTH118
        if not json.load(plan)["declared"]:
            return True  # a script alone: ForgeActor attaches to the run when it is used
    driver = importlib.import_module(boot.DRIVER)
    driver.bring_up()
    if kind == "resident":
        driver.stay()
        return False
    return True
