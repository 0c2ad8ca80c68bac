"""`forgectl status`: prints a row for each mesh of this user's runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forgectl.cli import parameters
from forgectl.errors import ForgeError

if TYPE_CHECKING:
    from forgectl.cli.find import Found
    from forgectl.controller.run_dir import RunDir
    from forgectl.model.status import RunStatus

DRIVER_SECONDS = 1.0
"""How long a driver may take to send the metrics of its services."""


@parameters.command()
@parameters.argument("mesh", required=False, metavar="[NAME]", help="RUN, MESH or RUN/MESH[/RANK], with its ranks.")
@click.option("-v", "--verbose", is_flag=True, help="Show ranks too.")
@click.option("-w", "--watch", is_flag=True, help="Keep showing; with --json one document per line.")
@click.option("-a", "--all", "everything", is_flag=True, help="Show runs that have ended too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def status(mesh: str | None, verbose: bool, watch: bool, everything: bool, as_json: bool) -> None:
    """Show meshes and their states.

    With -v or a NAME also ranks: their hosts, GPUs, processor and memory.
    """
    import json
    import sys

    if watch:
        from forgectl.cli.status_watch import keep_showing

        keep_showing(lambda: collect(mesh, everything, stats=True)[0], as_json=as_json, ranks=verbose or bool(mesh))
        return
    runs, troubles = collect(mesh, everything, stats=verbose or bool(mesh) or as_json)
    if as_json:
        from forgectl.cli.views.status_json import status_json

        sys.stdout.write(json.dumps(status_json(runs), indent=2) + "\n")
    else:
        from forgectl.cli.views import render

        render.show(render.status_view(runs, ranks=verbose or bool(mesh)))
    if troubles:
        sys.stdout.flush()
        raise troubles[0]


def collect(mesh: str | None, everything: bool, *, stats: bool) -> tuple[list[RunStatus], list[ForgeError]]:
    """The runs to show, and the errors of runs that cannot be shown.

    With `mesh`, which may name a run, a mesh or a rank, that is one run, with the named part alone. `everything`
    includes runs that have ended; `stats` adds what ranks use.
    """
    from forgectl.cli.find import find
    from forgectl.controller import run_dir

    if mesh is not None:
        named = find(mesh, ended=True)
        return [_part(_status(named.run, stats=stats), named)], []
    runs: list[RunStatus] = []
    troubles: list[ForgeError] = [*run_dir.refused_runs().values()]
    for run in run_dir.all_runs():
        if not everything and run.has_ended:
            continue
        try:
            found = _status(run, stats=stats)
        except (ForgeError, FileNotFoundError) as e:  # the other runs must still be shown
            if isinstance(e, ForgeError) and run.plan_file.exists():
                troubles.append(e)
            continue  # a run without a plan is a launch that has just been discarded
        if everything or not found.ended or found.state == "lost":
            runs.append(found)
    return runs, troubles


def _part(status: RunStatus, named: Found) -> RunStatus:
    """What was named of a run."""
    import dataclasses

    meshes = [m for m in status.meshes if named.target is None or m.mesh in named.meshes]
    if named.rank is not None:
        meshes = [dataclasses.replace(m, ranks=tuple(r for r in m.ranks if r.rank == named.rank)) for m in meshes]
    return dataclasses.replace(status, meshes=tuple(meshes))


def _status(run: RunDir, *, stats: bool) -> RunStatus:
    """A run's state; with `stats` also what its ranks use, and the metrics of its services."""
    import dataclasses

    from forgectl.controller import client

    found = client.document(run, stats=stats)
    if stats and not found.ended and any(m.kind == "service" for m in found.meshes):
        from forgectl.cli.driver_client import ask_driver
        from forgectl.protocol.endpoint_calls import GetMetrics, Metrics

        try:
            services = ask_driver(run, GetMetrics(), Metrics, DRIVER_SECONDS).services
        except ForgeError:  # the driver is starting, ending or busy: show the rest
            services = {}
        return dataclasses.replace(found, services=services)
    return found
