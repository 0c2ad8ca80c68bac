"""`forgectl events`: prints what happened in a run, while it lives and afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forgectl.cli import parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from forgectl.model.event import RunEvent


@parameters.command(
    codes=(64, 66, 77, 130),
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl events sft": "all that happened",
        "forgectl events -f --since 10m": "the last ten minutes, and on to the end of the run",
        "forgectl events sft --json | jq .": "for programs",
    },
)
@parameters.any_name()
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@parameters.since("events")
@click.option("--json", "as_json", is_flag=True, help="A JSON document per line.")
def events(name: str | None, follow: bool, since: str | None, as_json: bool) -> None:
    """Print what happened in a run, in order.

    Each event has a number that only grows, so that a program can go on where it was. With a mesh or rank, only its
    events are printed. With -f it ends with the run.
    """
    import contextlib
    import time

    from forgectl.cli.find import find_most, only_living
    from forgectl.cli.moments import moment
    from forgectl.cli.views.events_view import EventPrinter
    from forgectl.cli.watch import RunWatch
    from forgectl.controller import client
    from forgectl.controller.history import History
    from forgectl.errors import ForgeError

    begin = None if since is None else moment("--since", since, time.time())
    found = only_living() if name is None else find_most(name)
    history, printer = History(found.run), EventPrinter(as_json=as_json)
    wanted = _wanted(None if found.target is None else found.meshes, found.rank, begin)
    if not follow:
        with contextlib.suppress(ForgeError):  # a run whose controller died has more to tell once it has another
            client.document(found.run)
    printer.show(filter(wanted, history.more()))
    for status in RunWatch(found.run).steps() if follow else ():
        if status is not None:
            printer.show(filter(wanted, history.more()))


def _wanted(meshes: tuple[str, ...] | None, rank: int | None, since: float | None) -> Callable[[RunEvent], bool]:
    def is_wanted(event: RunEvent) -> bool:
        of_mesh = meshes is None or event.mesh in meshes
        return of_mesh and (rank is None or event.rank == rank) and (since is None or event.time >= since)

    return is_wanted
