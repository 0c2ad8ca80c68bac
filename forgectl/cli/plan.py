"""`forgectl plan`: shows what a launch would run, without starting anything."""

from __future__ import annotations

from typing import Annotated

import typer

from forgectl.cli.launch import Overrides, RunName, SpecPath


def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    name: RunName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Show what `launch SPEC` would run, and start nothing.

    It prints every rank with its host, GPUs and environment.
    """
    import json
    import os
    import sys

    from forgectl.cli.begin import planned
    from forgectl.cli.views.plan_view import plan_json, plan_table
    from forgectl.cli.views.render import show
    from forgectl.spec.load import load

    with planned(load(spec, overrides=overrides or (), environ=os.environ, name=name)) as (made, _):
        if as_json:
            sys.stdout.write(json.dumps(plan_json(made), indent=2) + "\n")
        else:
            show(plan_table(made))
