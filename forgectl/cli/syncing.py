"""Copies the workdir to ssh hosts before a launch, with a progress bar on a terminal."""

from __future__ import annotations

from forgectl.plan.model import Plan
from forgectl.transport.facts import Hosts


def sync_workdir(plan: Plan, hosts: Hosts) -> None:
    """Bring every ssh host of the plan what it lacks of workdir; raises what is in the way, of all hosts at once."""
