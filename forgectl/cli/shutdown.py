"""`forgectl shutdown`: ends meshes or runs, and prints how each ended."""

from __future__ import annotations

from typing import Annotated

import typer


def shutdown(
    meshes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MESH]...", help="Meshes to end, or RUN/MESH.", show_default=False),
    ] = None,
    runs: Annotated[list[str] | None, typer.Option("--run", metavar="RUN", help="End a whole run.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="End all runs of this user.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.0, metavar="S", help="Seconds between SIGTERM and SIGKILL.")
    ] = 10.0,
    force: Annotated[bool, typer.Option("--force", help="SIGKILL at once.")] = False,
) -> None:
    """End meshes, and return when all their processes are gone."""
    import sys

    from forgectl.cli.ending import end_all
    from forgectl.cli.find import all_living, find_mesh, find_run, raise_refused
    from forgectl.errors import UsageError

    if sum(map(bool, (meshes, runs, everything))) != 1:
        raise UsageError("say what to end: MESH…, or --run RUN, or --all", hint="`forgectl status` shows what runs")
    targets: dict[str, tuple[str, ...] | None] = {}
    if everything:
        targets = {run.run: None for run in all_living()}
    elif runs:
        targets = {find_run(name).run: None for name in runs}
    else:
        for name in meshes or ():
            run, found = find_mesh(name)
            targets[run.run] = (*(targets.get(run.run) or ()), *found)
    code = end_all(targets, 0.0 if force else timeout)
    if everything:
        sys.stdout.flush()
        raise_refused()
    raise typer.Exit(code)
