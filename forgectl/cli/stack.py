"""`forgectl stack`: prints where every rank is."""

from __future__ import annotations

import click

from forgectl.cli import parameters


@parameters.command(
    codes=(66, 77, 124, 130),
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl stack": "the one living run",
        "forgectl stack trainer --ranks 0-3 -v": "whole stacks of four ranks",
        "forgectl stack trainer --json | jq .": "for programs",
    },
)
@parameters.any_name(ended=False)
@parameters.ranks
@click.option("-v", "--verbose", is_flag=True, help="Whole stacks, of all threads.")
@click.option("--native", is_flag=True, help="With the frames of C and C++, by py-spy where that is installed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def stack(name: str | None, ranks: str | None, verbose: bool, native: bool, as_json: bool) -> None:
    """Show where ranks are, and who keeps whom waiting.

    Ranks at the same line are shown together. Nothing is changed in your code, no port is opened, and no rank stops
    for longer than a moment.
    """
    import sys

    from forgectl.cli.find import find, only_living
    from forgectl.cli.output import parse_ranks
    from forgectl.cli.shown_stacks import look
    from forgectl.cli.views import render, stack_view
    from forgectl.cli.views.json_text import json_text

    wanted = parse_ranks(ranks)
    found = find(name) if name is not None else only_living()
    meshes = look(found, wanted, native=native)
    if as_json:
        sys.stdout.write(json_text(stack_view.document(found.run.run, meshes)))
    else:
        render.show(stack_view.stack_view(meshes, whole=verbose or native))
