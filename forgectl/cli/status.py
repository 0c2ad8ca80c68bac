"""`forgectl status`: prints a row for each mesh of this user's runs."""

from __future__ import annotations

import click

from forgectl.cli import candidates, parameters
from forgectl.errors import ForgeError, UsageError

FORMS = ("table", "wide", "name", "json")


@parameters.command(
    aliases=("ps",),
    codes=(66, 77, 124, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl status": "what lives, and what failed in the last hour",
        "forgectl status sft": "with its ranks",
        "forgectl status -w sft": "until its run ends, with its exit code",
        "forgectl ps -aq": "the ids of all runs",
        "forgectl status --json | jq .runs[].state": "for programs",
    },
)
@parameters.argument(
    "mesh",
    required=False,
    metavar="[NAME]",
    help="RUN, MESH or RUN/MESH[/RANK], with its ranks.",
    shell_complete=candidates.names(ended=True, ranks=True),
)
@click.option("-v", "--verbose", is_flag=True, help="Show ranks too.")
@click.option("-w", "--watch", is_flag=True, help="Keep showing; with a NAME until its run ends, with its exit code.")
@click.option("-a", "--all", "everything", is_flag=True, help="Show all runs that have ended too.")
@click.option("-o", "--output", "form", type=click.Choice(FORMS), help="wide: all columns, uncut; name: ids of runs.")
@click.option("-q", "--quiet", is_flag=True, help="Print names alone, as -o name.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document, as -o json; with -w one per line.")
def status(
    mesh: str | None, verbose: bool, watch: bool, everything: bool, form: str | None, quiet: bool, as_json: bool
) -> int:
    """Show meshes and their states.

    Runs that failed in the last hour are shown, too; JSON and names are of living runs alone. With -v or a NAME also
    ranks: their hosts, GPUs, processor and memory.
    """
    import sys

    from forgectl.cli.find import find
    from forgectl.cli.shown_runs import collect, look, nothing
    from forgectl.cli.views import render

    form = _form(form, quiet, as_json)
    ranks = verbose or bool(mesh)
    shows_metrics = form == "json" or (ranks and form != "name")
    if watch:
        if form in ("wide", "name"):
            raise UsageError(f"-w keeps showing a table or JSON, not -o {form}")
        from forgectl.cli import status_watch

        if mesh is not None:
            return status_watch.follow(find(mesh, ended=True), as_json=form == "json")
        return status_watch.keep_showing(everything, as_json=form == "json", ranks=ranks)
    troubles: list[ForgeError] = []
    if mesh is not None:
        runs = [look(find(mesh, ended=True), stats=form != "name", metrics=shows_metrics)]
    else:
        recent = form in ("table", "wide")
        runs, troubles = collect(everything, recent=recent, stats=form != "name", metrics=shows_metrics)
    if form == "json":
        from forgectl.cli.views.json_text import json_text
        from forgectl.cli.views.status_json import status_json

        sys.stdout.write(json_text(status_json(runs)))
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
