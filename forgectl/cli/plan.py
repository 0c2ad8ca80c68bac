"""`forgectl plan`: shows what a launch would run, without starting anything."""

from __future__ import annotations

from pathlib import Path

import click

from forgectl.cli import parameters


@parameters.command(
    codes=(65, 66, 69, 75, 77),
    variables=("FORGECTL_SSH", "FORGECTL_GPU_LOCK_DIR"),
    examples={
        "forgectl plan": "forge.yaml of this folder",
        "forgectl plan sft.yaml --set scripts.sft.procs=4": "with an override",
        "forgectl plan sft.yaml --json": "all of it, with every rank's environment",
    },
)
@parameters.spec
@parameters.overrides
@parameters.run_name
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
def plan(spec: Path | None, overrides: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Show what `launch SPEC` would run, and start nothing.

    It prints every rank with its host, GPUs and environment.
    """
    import os
    import sys

    from forgectl.cli.begin import planned, spec_file
    from forgectl.cli.interpreters import modules_here
    from forgectl.cli.views.json_text import json_text
    from forgectl.cli.views.plan_view import plan_json, plan_table
    from forgectl.cli.views.render import show
    from forgectl.spec.load import load

    file = spec_file(spec, "plan")
    loaded = load(file, overrides=overrides, environ=os.environ, name=name, interpreters=modules_here)
    with planned(loaded) as (made, _):
        if as_json:
            sys.stdout.write(json_text(plan_json(made)))
        else:
            show(plan_table(made))
