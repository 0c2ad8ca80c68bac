"""`forgectl logs`: prints what ranks have written, while they run and afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forgectl.cli import candidates, parameters

if TYPE_CHECKING:
    import re


@parameters.command(
    codes=(66, 77, 124, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl logs": "of the one living run",
        "forgectl logs -f -n 20 train": "the last lines, then what comes",
        "forgectl logs train/3 -t --since 10m": "one rank, with times",
        "forgectl logs sft --ranks 0,2-5 --grep loss": "lines with a word",
        "forgectl logs train --previous": "before the last restart",
    },
)
@parameters.any_name("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--follow", is_flag=True, help="Go on until all of it has ended.")
@click.option(
    "-n", "--tail", "last", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of each rank."
)
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@parameters.since("lines written")
@click.option("--until", metavar="TIME", help="Only lines written until then.")
@click.option("-p", "--previous", is_flag=True, help="The generation before the last restart.")
@click.option(
    "--generation",
    type=click.IntRange(min=0),
    metavar="G",
    help="That generation, counted from 0.",
    shell_complete=candidates.generations,
)
@click.option("--grep", metavar="REGEX", help="Only lines in which it is found.")
@parameters.ranks
@parameters.no_prefix
@click.option("--exit-code", "exit_code", is_flag=True, help="Follow, and end with the exit code of what was followed.")
def logs(
    names: tuple[str, ...],
    follow: bool,
    last: int | None,
    timestamps: bool,
    since: str | None,
    until: str | None,
    previous: bool,
    generation: int | None,
    grep: str | None,
    ranks: str | None,
    no_prefix: bool,
    exit_code: bool,
) -> int:
    """Print what ranks have printed, in the order of time.

    It prints the current generation of each mesh, of one run. With -f it ends when the run, or the meshes that were
    named, have ended, and says how.
    """
    import time

    from forgectl.cli.find import find, in_one_run, only_living
    from forgectl.cli.moments import moment
    from forgectl.cli.output import parse_ranks
    from forgectl.cli.views.log_view import LogView, show_logs
    from forgectl.errors import UsageError

    wanted, pattern, now = parse_ranks(ranks), _pattern(grep), time.time()
    follow = follow or exit_code
    past = {"--until": until, "--previous": previous, "--generation": generation is not None}
    if follow and (used := [option for option, given in past.items() if given]):
        raise UsageError(f"{used[0]} shows what is past, which --follow and --exit-code do not")
    if previous and generation is not None:
        raise UsageError("--previous is a generation, too: give it or --generation")
    view = LogView(
        last=last,
        since=None if since is None else moment("--since", since, now),
        until=None if until is None else moment("--until", until, now),
        grep=pattern,
        generation=-1 if previous else generation,
        times=timestamps,
        prefix=not no_prefix,
    )
    found = [find(name, ended=True) for name in names] or [only_living()]
    code = show_logs(in_one_run(found), found, wanted, view, follow=follow)
    return code if exit_code else 0


def _pattern(text: str | None) -> re.Pattern[bytes] | None:
    import re

    from forgectl.errors import UsageError

    try:
        return None if text is None else re.compile(text.encode(errors="surrogateescape"))
    except re.error as e:
        raise UsageError(f"--grep {text!r}: {e}", hint="it is a regular expression of Python") from None
