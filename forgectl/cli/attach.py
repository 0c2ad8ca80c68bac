"""`forgectl attach`: the view of a launch in the foreground, again."""

from __future__ import annotations

import click

from forgectl.cli import candidates, parameters


@parameters.command(
    codes=(66, 77, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl attach": "the one living run",
        "forgectl attach sft -n 0 --ranks 0": "from now on, rank 0 alone",
        "forgectl attach -q sft && echo done": "wait for its end, and see why it failed",
    },
)
@parameters.argument(
    "name",
    required=False,
    metavar="[RUN]",
    help="A run's id or name; default: the one living run.",
    shell_complete=candidates.run_ids,
)
@click.option(
    "-n",
    "--tail",
    "last",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="Begin with the last N lines of each rank.",
)
@parameters.output
def attach(name: str | None, last: int, ranks: str | None, no_prefix: bool, quiet: bool) -> int:
    """Follow a run as a launch in the foreground does.

    It ends with the run, and with its exit code. Ctrl-C only leaves: the run goes on.
    """
    from forgectl.cli.find import find_run, only_living
    from forgectl.cli.foreground import follow
    from forgectl.cli.output import output_of

    output = output_of(ranks, no_prefix, quiet)
    return follow(only_living().run if name is None else find_run(name, ended=True), last, output)
