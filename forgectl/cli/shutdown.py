"""`forgectl shutdown`: ends meshes or runs, and prints how each ended."""

from __future__ import annotations

import click

from forgectl.cli import candidates, parameters


@parameters.command()
@parameters.argument(
    "names",
    nargs=-1,
    metavar="[NAME]...",
    help="Runs or meshes to end: RUN, MESH or RUN/MESH.",
    shell_complete=candidates.names(),
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="RUN",
    help="End a whole run, even if a mesh has its name.",
    shell_complete=candidates.run_ids,
)
@click.option("--all", "everything", is_flag=True, help="End all runs of this user.")
@parameters.grace
@parameters.force
def shutdown(names: tuple[str, ...], runs: tuple[str, ...], everything: bool, timeout: float, force: bool) -> int:
    """End runs or meshes, and return when all is gone."""
    import sys

    from forgectl.cli.ending import end_all
    from forgectl.cli.find import all_living, find_run, find_whole, raise_refused
    from forgectl.errors import UsageError

    if sum(map(bool, (names, runs, everything))) != 1:
        raise UsageError(
            "say what to end: RUN or MESH…, or --run RUN, or --all", hint="`forgectl status` shows what runs"
        )
    targets: dict[str, tuple[str, ...] | None] = {}
    if everything:
        targets = {run.run: None for run in all_living()}
    elif runs:
        targets = {find_run(name).run: None for name in runs}
    else:
        for found in [find_whole(name, "forgectl shutdown") for name in names]:
            before = targets.get(found.run.run, ())
            whole = found.target is None or before is None
            targets[found.run.run] = None if whole else tuple(dict.fromkeys((*(before or ()), *found.meshes)))
    code = end_all(targets, 0.0 if force else timeout)
    if everything:
        sys.stdout.flush()
        raise_refused()
    return code
