"""`forgectl why`: what happened to a run, in order of cause."""

from __future__ import annotations

import click

from forgectl.cli import parameters


@parameters.command(
    codes=(66, 77, 130),
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl why": "of the run that failed last",
        "forgectl why sft/trainer/3": "of one rank",
        "forgectl why sft --json | jq .": "for programs",
    },
)
@parameters.any_name(default="the run that failed last, or the one that lives")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def why(name: str | None, as_json: bool) -> None:
    """Say why a run, a mesh or a rank ended, or what goes on in it.

    The first failure comes first: which rank, on which host, and how; its traceback or last lines; which ranks fell
    with it; what `restart:` did; and what to try. It works while the run lives, afterwards, and without a controller.
    """
    import sys

    from forgectl.cli.find import find_most, latest
    from forgectl.cli.telling import account
    from forgectl.cli.views import render
    from forgectl.cli.views.json_text import json_text
    from forgectl.cli.views.why_view import why_view
    from forgectl.controller.account import account_json
    from forgectl.redaction import of_run

    found = account(latest() if name is None else find_most(name))
    redact = of_run(())
    if as_json:
        sys.stdout.write(redact(json_text(account_json(found))))
    else:
        render.show(why_view(found, redact))
