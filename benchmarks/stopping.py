"""How long `forgectl shutdown` takes: with ranks that obey, and with ranks that ignore SIGTERM."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from forge import Forge, ranks_of
from measure import BenchmarkError, Row

OBEDIENT, DEAF = 16, 4
GRACE = 2.0  # seconds


def shutdown(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Sixteen ranks that end on SIGTERM, from the command to its return with all of them gone."""
    samples = tuple(_shutdown(forge, OBEDIENT) for _ in range(options.repeat))
    yield Row("shutdown", f"{OBEDIENT} obedient ranks", "s", samples, 1.0)


def stubborn(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Ranks that ignore SIGTERM, with `--timeout 2`."""
    samples = tuple(_shutdown(forge, DEAF, "--deaf", grace=GRACE) for _ in range(options.repeat))
    what = f"{DEAF} deaf ranks, --timeout {GRACE:g}"
    yield Row("stubborn", what, "s", samples, GRACE + 0.5, "the grace period and 0.5 s")


def _shutdown(forge: Forge, procs: int, *arguments: str, grace: float | None = None) -> float:
    with forge.running("stamp_and_stay.py", *arguments, procs=procs) as (name, stamps):
        stamps.last(procs)
        run = forge.status(name)
        pids = [rank["pid"] for rank in ranks_of(run)]
        timeout = () if grace is None else ("--timeout", f"{grace:g}")
        seconds = forge.seconds("shutdown", "--run", run["run"], *timeout)
        if left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            raise BenchmarkError(f"shutdown returned, but ranks are left: {left}")
        if grace is not None and seconds < grace:
            raise BenchmarkError(f"deaf ranks were gone {seconds:.2f} s after a shutdown with {grace:g} s of grace")
        return seconds
