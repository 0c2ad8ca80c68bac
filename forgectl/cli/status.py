"""`forgectl status`: prints a row for each mesh of this user's runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from forgectl.cli import parameters
from forgectl.errors import ForgeError, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from forgectl.controller.run_dir import RunDir
    from forgectl.model.status import RunStatus

DRIVER_SECONDS = 1.0
"""How long a driver may take to send the metrics of its services."""
RECENT_SECONDS = 3600.0
"""How long people see a run that has failed without asking for runs that have ended."""
FORMS = ("table", "wide", "name", "json")


@parameters.command()
@parameters.argument("mesh", required=False, metavar="[MESH]", help="One mesh (or RUN/MESH), with its ranks.")
@click.option("-v", "--verbose", is_flag=True, help="Show ranks too.")
@click.option("-w", "--watch", is_flag=True, help="Keep showing; with a MESH until its run ends, with its exit code.")
@click.option("-a", "--all", "everything", is_flag=True, help="Show all runs that have ended too.")
@click.option("-o", "--output", "form", type=click.Choice(FORMS), help="wide: all columns, uncut; name: ids of runs.")
@click.option("-q", "--quiet", is_flag=True, help="Print names alone, as -o name.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document, as -o json; with -w one per line.")
def status(
    mesh: str | None, verbose: bool, watch: bool, everything: bool, form: str | None, quiet: bool, as_json: bool
) -> int:
    """Show meshes and their states.

    Runs that failed in the last hour are shown, too; JSON and names are of living runs alone. With -v or a MESH also
    ranks: their hosts, GPUs, processor and memory.
    """
    import sys

    from forgectl.cli.views import render

    form = _form(form, quiet, as_json)
    ranks = verbose or bool(mesh)
    if watch:
        if form in ("wide", "name"):
            raise UsageError(f"-w keeps showing a table or JSON, not -o {form}")
        from forgectl.cli import status_watch

        if mesh is not None:
            return status_watch.follow(*_find(mesh), as_json=form == "json")
        return status_watch.keep_showing(everything, as_json=form == "json", ranks=ranks)
    troubles: list[ForgeError] = []
    if mesh is not None:
        run, names = _find(mesh)
        runs = [look(run, names, stats=form != "name")]
    else:
        stats = form == "json" or (verbose and form != "name")
        runs, troubles = collect(everything, recent=form in ("table", "wide"), stats=stats)
    if form == "json":
        import json

        from forgectl.cli.views.status_json import status_json

        sys.stdout.write(json.dumps(status_json(runs), indent=2) + "\n")
    elif form == "name":
        names_of = (f"{r.run}/{m.mesh}" for r in runs for m in r.meshes) if mesh else (r.run for r in runs)
        sys.stdout.write("".join(f"{name}\n" for name in names_of))
    else:
        from forgectl.cli.views import status_view

        view = status_view.status_view(runs, ranks=ranks, wide=form == "wide") if runs else nothing()
        render.show(view, width=render.WIDE if form == "wide" else None)
    if troubles:
        sys.stdout.flush()
        raise troubles[0]
    return 0


def _form(form: str | None, quiet: bool, as_json: bool) -> str:
    """The one form that the options ask for; raises UsageError if they ask for several."""
    asked = {*([form] if form else []), *(["name"] if quiet else []), *(["json"] if as_json else [])}
    if len(asked) > 1:
        raise UsageError("say one of -o, -q and --json: each is another form of the output")
    return asked.pop() if asked else "table"


def _find(mesh: str) -> tuple[RunDir, Collection[str]]:
    from forgectl.cli.find import find_mesh

    return find_mesh(mesh, ended=True)


def collect(
    everything: bool, *, recent: bool, stats: bool, also: Collection[str] = ()
) -> tuple[list[RunStatus], list[ForgeError]]:
    """The runs to show, and the errors of runs that cannot be shown.

    `everything` includes runs that have ended, `recent` those that have failed lately, and of those that ended lately
    `also` names more; `stats` adds what ranks use.
    """
    import time

    from forgectl.controller import run_dir

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
            found = _status(run, stats=stats)
        except (ForgeError, FileNotFoundError) as e:  # the other runs must still be shown
            if isinstance(e, ForgeError) and run.plan_file.exists():
                troubles.append(e)
            continue  # a run without a plan is a launch that has just been discarded
        if everything or not found.ended or found.state == "lost" or (recent and found.state == "failed"):
            runs.append(found)
    return runs, troubles


def look(run: RunDir, meshes: Collection[str], *, stats: bool) -> RunStatus:
    """The state of a run, with these meshes alone."""
    import dataclasses

    found = _status(run, stats=stats)
    return dataclasses.replace(found, meshes=tuple(m for m in found.meshes if m.mesh in meshes))


def nothing() -> Text:
    """What people see if there is no run to show: the run that ended last."""
    from forgectl.cli.views import status_view
    from forgectl.controller import run_dir

    last = max(run_dir.all_runs(), key=lambda run: run.end_time() or 0.0, default=None)
    return status_view.nothing_runs(last.read_final() if last else None)


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
