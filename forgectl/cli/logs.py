"""`forgectl logs`: prints what ranks have written, while they run and afterwards."""

from __future__ import annotations

import click

from forgectl.cli import parameters


@parameters.command()
@parameters.argument("mesh", metavar="MESH", help="A mesh, or RUN/MESH.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the mesh has ended.")
@click.option(
    "-n", "--tail", "last", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of each rank."
)
@click.option("--ranks", metavar="0,2-5", help="Only these ranks.")
@click.option("--no-prefix", is_flag=True, help="The lines alone, without rank and host.")
def logs(mesh: str, follow: bool, last: int | None, ranks: str | None, no_prefix: bool) -> None:
    """Print the log of every rank of MESH.

    It prints the current generation. For a service, it prints all its replicas.
    """
    from forgectl.cli.find import find_mesh
    from forgectl.cli.views.log_view import show_logs

    wanted = parse_ranks(ranks)
    run, names = find_mesh(mesh, ended=True)
    show_logs(run, names, follow=follow, last=last, ranks=wanted, prefix=not no_prefix)


def parse_ranks(text: str | None) -> frozenset[int] | None:
    """`0,2-5` as a set of ranks; None for all. Raises UsageError."""
    from forgectl.errors import UsageError

    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) - int(first) > 100_000:
            raise UsageError(f"--ranks {text!r}: expected ranks such as 0,2-5")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
