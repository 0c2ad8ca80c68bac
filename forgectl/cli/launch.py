"""`forgectl launch`: plans, starts, waits until all meshes are up, then follows the run to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML spec.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a value of the spec, as in scripts.sft.procs=4."),
]
RunName = Annotated[str | None, typer.Option("--name", help="Name of the run; default: the spec's.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as all meshes are up.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.0, metavar="S", help="Give up unless all is up in S seconds."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the run as JSON when it is up (-d) or has ended; logs go to stderr."),
]


def launch(
    spec: SpecPath,
    detach: Detach = False,
    overrides: Overrides = None,
    name: RunName = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Start everything that SPEC declares.

    In the foreground it follows the logs; Ctrl-C shuts the run down in order, a second Ctrl-C at once. It ends with
    the exit code of the workload that failed (128 + signal), or 0.
    """
    import os

    from forgectl.cli.begin import planned
    from forgectl.cli.foreground import LaunchOptions, launch_plan
    from forgectl.spec.load import load

    loaded = load(spec, overrides=overrides or (), environ=os.environ, name=name)
    with planned(loaded) as (plan, hosts):
        how = LaunchOptions(detach=detach, timeout=timeout, as_json=as_json)
        raise typer.Exit(launch_plan(plan, hosts, loaded.text, how, name_is_given=True))
