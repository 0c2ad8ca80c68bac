"""`forgectl config`: prints a spec as it was understood."""

from __future__ import annotations

from pathlib import Path

import click

from forgectl.cli import parameters


@parameters.command(
    codes=(65, 66),
    examples={
        "forgectl config": "forge.yaml of this folder",
        "forgectl config sft.yaml --set scripts.sft.procs=4": "with an override",
        "forgectl config -o json | jq .scripts": "for programs",
        "forgectl config sft.yaml > frozen.yaml": "to launch just this later",
    },
)
@parameters.spec
@parameters.overrides
@parameters.run_name
@click.option(
    "-o", "--output", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="Its form."
)
def config(spec: Path | None, overrides: tuple[str, ...], name: str | None, form: str) -> None:
    """Print SPEC as forgectl understands it, and start nothing.

    Defaults and variables are filled in, overrides applied, and hosts that a file or Slurm names are listed. What it
    prints can be launched, from any folder, and is the same run. Of `secrets` it has the names alone; what `env` takes
    from your environment is printed. It asks no host and runs no program.
    """
    import os
    import sys

    from forgectl.cli.begin import spec_file
    from forgectl.spec.load import load
    from forgectl.spec.resolved import as_json, as_yaml, resolved

    document = resolved(load(spec_file(spec, "config"), overrides=overrides, environ=os.environ, name=name))
    sys.stdout.write(as_json(document) if form == "json" else as_yaml(document))
