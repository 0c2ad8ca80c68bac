"""The run's driver: brings up what the spec declares, then runs the user's script, or stays and serves calls."""

from __future__ import annotations

import importlib
import json
import os


def begin(kind: str) -> bool:
    """Bring up the declared actors and services; False once a driver without a script has been told to end."""
    with open(os.path.join(os.environ["FORGE_RUN_DIR"], "plan.json")) as plan:  # noqa: PTH118
        if not json.load(plan)["declared"]:
            return True  # a script alone: ForgeActor attaches to the run when it is used
    driver = importlib.import_module("forgectl.actor.driver")
    driver.bring_up()
    if kind == "resident":
        driver.stay()
        return False
    return True
