"""What `launch`, `run` and `plan` share: a spec becomes a plan."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from forgectl.errors import NotInstalledError, SpecError
from forgectl.plan.model import Plan

if TYPE_CHECKING:
    from forgectl.spec.model import Spec


def make_plan(spec: Spec) -> Plan:
    """Place the spec on its hosts as they are now; raises SpecError, BusyError, NotInstalledError."""
    from forgectl.plan.placement import place
    from forgectl.transport.facts import gather

    _refuse_what_cannot_be_launched(spec)
    plan = place(spec, gather(spec, os.environ), python=sys.executable, inherited=os.environ)
    _refuse_actors_without_monarch(plan)
    return dataclasses.replace(plan, spec=str(Path(spec.source).absolute()) if spec.source else "")


def _refuse_what_cannot_be_launched(spec: Spec) -> None:
    message = "hosts reached by ssh cannot be launched by this version yet"
    problems = [spec.problem(f"hosts[{i}]", message) for i, host in enumerate(spec.hosts) if not host.local]
    if spec.driver and spec.driver.command and (spec.actors or spec.services):
        message = "a command cannot bring up the spec's actors and services; use `run: FILE.py` or `module:`"
        problems.append(spec.problem("driver.command", message))
    if problems:
        raise SpecError(spec.source, problems)


def _refuse_actors_without_monarch(plan: Plan) -> None:
    """Of other interpreters than this one their ranks tell."""
    monarchs = [m for m in plan.meshes if m.stays or (m.kind == "driver" and plan.declared)]
    if any(sys.executable in m.python.values() for m in monarchs) and not importlib.util.find_spec("monarch"):
        message = f"actors and services need torchmonarch, which {sys.executable} does not have"
        raise NotInstalledError(message, hint="pip install 'forgectl[actors]'")
