"""What `launch`, `run` and `plan` share: a spec becomes a plan, a plan becomes a run with a controller."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from forgectl.controller import client, rundir
from forgectl.controller.rundir import RunDir
from forgectl.errors import BusyError, InternalError, SpecError, SpecProblem
from forgectl.plan.model import Plan

if TYPE_CHECKING:
    from forgectl.spec.model import Spec


def make_plan(spec: Spec) -> Plan:
    """Place the spec on its hosts as they are now; raises SpecError, BusyError."""
    from forgectl.plan.placement import place
    from forgectl.transport.facts import gather

    _refuse_what_is_not_built(spec)
    plan = place(spec, gather(spec, os.environ), python=sys.executable, inherited=os.environ)
    return dataclasses.replace(plan, spec=str(Path(spec.source).absolute()) if spec.source else "")


def _refuse_what_is_not_built(spec: Spec) -> None:
    problems: list[SpecProblem] = []
    for i, host in enumerate(spec.hosts):
        if not host.local:
            problems.append(spec.problem(f"hosts[{i}]", "hosts reached by ssh cannot be launched by this version yet"))
    for section in ("actors", "services"):
        problems += [
            spec.problem(f"{section}.{name}", f"{section} cannot be launched by this version yet; scripts can")
            for name in getattr(spec, section)
        ]
    if problems:
        raise SpecError(spec.source, problems)


def begin_run(plan: Plan, spec_text: bytes, *, name_is_given: bool, own: bool) -> RunDir:
    """Make the run's directory and start its controller; returns once the controller listens.

    With `own` the run ends when this process does.

    A name that a living run has is refused with BusyError, or followed by a number if nobody chose it.
    """
    secrets = {name: os.environ[name] for name in plan.secrets}
    with rundir.launch_lock():
        plan = dataclasses.replace(plan, name=_free_name(plan.name, name_is_given))
        run, lock = rundir.create(plan, spec_text)
    try:
        client.start_controller(run, secrets, lock=lock, own=own)
    except BaseException:
        rundir.discard(run)
        raise
    finally:
        os.close(lock)
    return run


def _free_name(name: str, is_given: bool) -> str:
    living = _living_names()
    if name not in living:
        return name
    if is_given:
        run = living[name]
        raise BusyError(
            f"the name {name} is in use by run {run}",
            hint=f"`forgectl shutdown --run {run}` ends it; `--name OTHER` launches beside it",
        )
    number: Callable[[int], str] = lambda n: f"{name}-{n}"  # noqa: E731
    return next(number(n) for n in range(2, 1 << 30) if number(n) not in living)


def _living_names() -> dict[str, str]:
    """Name → run of those that have not ended."""
    found = {}
    for run in rundir.all_runs():
        with contextlib.suppress(InternalError):  # it cannot be brought up: nothing of it outlives its lease
            if run.read_final() is None and client.document(run)["state"] in ("starting", "running", "stopping"):
                found[run.name] = run.run
    return found
