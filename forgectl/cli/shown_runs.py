"""The runs that `forgectl status` shows, and what is asked of each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection

from rich.text import Text

from forgectl.cli.find import Found
from forgectl.cli.views.status_view import nothing_runs
from forgectl.controller import client, run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError
from forgectl.model.status import RunStatus

DRIVER_SECONDS = 1.0
"""How long a driver may take to send the metrics of its services."""
RECENT_SECONDS = 3600.0
"""How long people see a run that has failed without asking for runs that have ended."""


def collect(
    everything: bool, *, recent: bool, stats: bool, metrics: bool, also: Collection[str] = ()
) -> tuple[list[RunStatus], list[ForgeError]]:
    """The runs to show, and the errors of runs that cannot be shown.

    `everything` includes runs that have ended, `recent` those that have failed lately, and of those that ended lately
    `also` names more; `stats` adds what ranks use, `metrics` what services count.
    """
    runs: list[RunStatus] = []
    troubles: list[ForgeError] = [*run_dir.refused_runs().values()]
    now = time.time()
    for run in run_dir.all_runs():
        if run.has_ended and not everything:
            if recent and now - (run.end_time() or 0.0) < RECENT_SECONDS:
                final = run.read_final()
                if final is not None and (final.state in ("failed", "lost") or run.run in also):
                    runs.append(final)
            continue
        try:
            found = _status(run, stats=stats, metrics=metrics)
        except (ForgeError, FileNotFoundError) as e:  # the other runs must still be shown
            if isinstance(e, ForgeError) and run.plan_file.exists():
                troubles.append(e)
            continue  # a run without a plan is a launch that has just been discarded
        if everything or not found.ended or found.state == "lost" or (recent and found.state == "failed"):
            runs.append(found)
    return runs, troubles


def look(named: Found, *, stats: bool, metrics: bool) -> RunStatus:
    """The state of a run, with what was named of it alone."""
    found = _status(named.run, stats=stats, metrics=metrics)
    meshes = [m for m in found.meshes if named.target is None or m.mesh in named.meshes]
    if named.rank is not None:
        meshes = [dataclasses.replace(m, ranks=tuple(r for r in m.ranks if r.rank == named.rank)) for m in meshes]
    return dataclasses.replace(found, meshes=tuple(meshes))


def nothing() -> Text:
    """What people see if there is no run to show: the run that ended last."""
    last = max(run_dir.all_runs(), key=lambda run: run.end_time() or 0.0, default=None)
    return nothing_runs(last.read_final() if last else None)


def _status(run: RunDir, *, stats: bool, metrics: bool) -> RunStatus:
    """A run's state; with `stats` also what its ranks use, with `metrics` what its driver tells of its services."""
    found = client.document(run, stats=stats)
    if metrics and not found.ended and any(m.kind == "service" for m in found.meshes):
        from forgectl.cli.driver_client import ask_driver  # few runs have services
        from forgectl.protocol.endpoint_calls import GetMetrics, Metrics

        try:
            services = ask_driver(run, GetMetrics(), Metrics, DRIVER_SECONDS).services
        except ForgeError:  # the driver is starting, ending or busy: show the rest
            services = {}
        return dataclasses.replace(found, services=services)
    return found
