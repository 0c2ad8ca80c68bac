"""`forgectl plan`: shows what a launch would run, without starting anything."""

from __future__ import annotations

from pathlib import Path

import click

from forgectl.cli import parameters


@parameters.command()
@parameters.spec
@parameters.overrides
@parameters.run_name
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
def plan(spec: Path | None, overrides: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Show what `launch SPEC` would run, and start nothing.

    It prints every rank with its host, GPUs and environment.
    """
    import json
    import os
    import sys

    from forgectl.cli.begin import planned, spec_file
    from forgectl.cli.interpreters import modules_here
    from forgectl.cli.views.plan_view import plan_json, plan_table
    from forgectl.cli.views.render import show
    from forgectl.spec.load import load

    file = spec_file(spec, "plan")
    loaded = load(file, overrides=overrides, environ=os.environ, name=name, interpreters=modules_here)
    with planned(loaded) as (made, _):
        if as_json:
            sys.stdout.write(json.dumps(plan_json(made), indent=2) + "\n")
        else:
            show(plan_table(made))
