"""Which of the ranks' output a command shows, and how: the options of `launch`, `run` and `attach`."""

from __future__ import annotations

from collections.abc import Iterable

from forgectl.errors import NotFoundError, UsageError
from forgectl.frozen import dataclass


@dataclass(frozen=True)
class Output:
    """What a command in the foreground shows: the lines of `ranks` (None: of all), and `prefix`: whose each is.

    `quiet`: only errors, and why it failed. `logs`: whether lines of ranks are shown at all.
    """

    ranks: frozenset[int] | None = None
    prefix: bool = True
    quiet: bool = False
    logs: bool = True

    def rank(self, rank: int | None) -> bool:
        """Whether the lines of a rank are shown; None: of any rank."""
        return self.logs and (self.ranks is None or rank in self.ranks)


def output_of(ranks: str | None, no_prefix: bool, quiet: bool, *, detach: bool = False) -> Output:
    """What the options `--ranks`, `--no-prefix` and `--quiet` ask for; raises UsageError if they ask for nothing."""
    if (ranks is not None or no_prefix) and (detach or quiet):
        used = "--ranks" if ranks is not None else "--no-prefix"
        hint = "`forgectl logs` and `attach` take it, too" if detach else "keep one of both"
        raise UsageError(f"{used} is about output, of which {'-d' if detach else '--quiet'} shows none", hint=hint)
    return Output(parse_ranks(ranks), not no_prefix, quiet, logs=not (quiet or detach))


def parse_ranks(text: str | None) -> frozenset[int] | None:
    """`0,2-5` as a set of ranks; None for all. Raises UsageError."""
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) - int(first) > 100_000:
            raise UsageError(f"--ranks {text!r}: expected ranks such as 0,2-5")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def check_ranks(output: Output, procs: Iterable[int], *, grows: bool) -> None:
    """Raise NotFoundError for a rank that no mesh has. `procs`: of each mesh; `grows`: code may add larger ones."""
    most = max(procs, default=0)
    if output.ranks and max(output.ranks) >= most and not grows:
        hint = f"there are ranks 0 to {most - 1}" if most > 1 else "there is only rank 0"
        raise NotFoundError(f"--ranks: no mesh has a rank {max(output.ranks)}", hint=hint)
