"""`forgectl shutdown`: ends meshes or runs, and prints how each ended."""

from __future__ import annotations

import click

from forgectl.cli import parameters


@parameters.command()
@parameters.argument("meshes", nargs=-1, metavar="[MESH]...", help="Meshes to end, or RUN/MESH.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="End a whole run.")
@click.option("--all", "everything", is_flag=True, help="End all runs of this user.")
@click.option(
    "--timeout",
    type=parameters.SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds between SIGTERM and SIGKILL.",
)
@click.option("--force", is_flag=True, help="SIGKILL at once.")
def shutdown(meshes: tuple[str, ...], runs: tuple[str, ...], everything: bool, timeout: float, force: bool) -> int:
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
        for name in meshes:
            run, found = find_mesh(name)
            targets[run.run] = (*(targets.get(run.run) or ()), *found)
    code = end_all(targets, 0.0 if force else timeout)
    if everything:
        sys.stdout.flush()
        raise_refused()
    return code
