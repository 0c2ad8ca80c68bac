"""`forgectl prune`: removes ended runs that are not to be kept."""

from __future__ import annotations

import click

from forgectl.cli import parameters


@parameters.command(
    codes=(75, 77),
    variables=("FORGECTL_HOME", "FORGECTL_KEEP"),
    examples={
        "forgectl prune": "what FORGECTL_KEEP does not keep",
        'forgectl prune --keep "7d, 20 runs" --dry-run': "see what would go",
    },
)
@click.option("--keep", metavar="LIMITS", help='What to keep, such as "7d, 20 runs, 5 GiB", each of them optional.')
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def prune(keep: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove ended runs beyond what is kept.

    Their logs go, too. The limits are those of --keep, else of the variable FORGECTL_KEEP, else 30d, 100 runs, 10 GiB:
    days since a run's end, ended runs, and what they take on disk. "everything" keeps all, "0 runs" nothing. Runs that
    live are never touched. The same is done by itself, at most hourly, when a run ends; then the last hour's runs stay
    in any case.
    """
    import sys
    import time

    from forgectl.cli.find import raise_refused
    from forgectl.cli.views import prune_view, render
    from forgectl.cli.views.json_text import json_text
    from forgectl.controller import prune as pruning
    from forgectl.controller.retention import superfluous
    from forgectl.errors import BusyError

    limits = pruning.policy(keep)
    if dry_run:
        done = pruning.Pruned(tuple(superfluous(pruning.ended_runs(), limits, time.time())), ())
    else:
        done = pruning.prune(limits, spared=0.0)
    if as_json:
        sys.stdout.write(json_text(prune_view.prune_json(done.runs, limits, dry_run=dry_run)))
    else:
        render.show(prune_view.prune_view(done.runs, limits, dry_run=dry_run))
    sys.stdout.flush()
    if done.errors:
        lines = [f"cannot remove {e.filename}: {e.strerror}" for e in done.errors]
        more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise BusyError("\n".join(lines[:5] + more), hint="the next `forgectl prune` tries again")
    raise_refused()
