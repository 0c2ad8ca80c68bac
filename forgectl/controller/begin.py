"""Begins a run: a free name, a directory, a controller that listens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from types import MappingProxyType

from forgectl.controller import client, rundir
from forgectl.controller.rundir import RunDir
from forgectl.errors import BusyError, InternalError
from forgectl.names import free_name
from forgectl.plan.model import Plan


def begin_run(
    plan: Plan,
    spec_text: bytes,
    *,
    name_is_given: bool,
    own: bool,
    handed: Mapping[str, int] = MappingProxyType({}),
) -> RunDir:
    """Make the run's directory and start its controller; returns once the controller listens.

    With `own` the run ends when this process does. `handed`: ssh host → connection to its relay, for the controller.

    A name that a living run has is refused with BusyError, or followed by a number if nobody chose it.
    """
    secrets = {name: os.environ[name] for name in plan.secrets}
    with rundir.launch_lock():
        plan = dataclasses.replace(plan, name=_free_name(plan.name, name_is_given))
        run, lock = rundir.create(plan, spec_text)
    try:
        client.start_controller(run, secrets, lock=lock, own=own, handed=handed)
    except BaseException:
        rundir.discard(run)
        raise
    finally:
        os.close(lock)
    return run


def _free_name(name: str, is_given: bool) -> str:
    living = _living_names()
    if is_given and name in living:
        run = living[name]
        raise BusyError(
            f"the name {name} is in use by run {run}",
            hint=f"`forgectl shutdown --run {run}` ends it; `--name OTHER` launches beside it",
        )
    return free_name(name, living)


def _living_names() -> dict[str, str]:
    """Name → run of those that have not ended."""
    found = {}
    for run in rundir.all_runs():
        with contextlib.suppress(InternalError):  # it cannot be brought up: nothing of it outlives its lease
            if run.read_final() is None and client.document(run)["state"] in ("starting", "running", "stopping"):
                found[run.name] = run.run
    return found
