"""What actors weigh: a rank at rest, callers and ranks after many calls, and a rank in a flood of calls."""

from __future__ import annotations

import os
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from forge import Forge
from measure import MEBI, BenchmarkError, Row, begin_peak, memory_of, peak_of
from sides import OURS, PLAIN, Side, side

RANKS = 8
BEYOND = 12.0  # MB of 10**6 bytes, beyond torch
PER_CALL = 8.0  # bytes
FLOOD = 64.0  # MiB
SETTLED = 0.1  # MiB from one second to the next
PATIENCE = 1200  # seconds, for many calls


def memory(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Ranks at rest, then callers and ranks after many calls."""
    yield _beyond_torch(forge)
    for name, what, verb in ((OURS, "handle", "call"), (OURS, "service", "route"), (PLAIN, PLAIN, "call")):
        with side(forge, name) as caller:
            if verb == "route":
                caller.ask("serve", 1)
            else:
                caller.ask("launch", 1)
            [rank] = caller.ask("served_pids" if verb == "route" else "pids")
            for end, grown in _growth(caller, rank, verb, options.calls).items():
                label = f"{options.calls:,} calls, {what}, {end}: bytes per call"
                yield Row("memory", label, "", (grown,), PER_CALL if name == OURS else None)
    yield _flood(forge, options.calls)


def _beyond_torch(forge: Forge) -> Row:
    """PSS of each rank of an actor's mesh, beyond that of a script's ranks that only sleep.

    Both meshes are up at the same time, so that all ranks share torch's libraries with equally many others.
    """
    with side(forge, OURS) as caller, forge.running("stamp_and_stay.py", procs=RANKS) as (_, stamps):
        stamps.last(RANKS)
        caller.ask("launch", RANKS)
        caller.ask("seconds", "call", 100)
        actors, sleepers = caller.ask("pids"), [pid for _, pid in stamps.read().values()]
        torch = statistics.median(_settled(sleepers))
        beyond = tuple((mebi - torch) * MEBI / 1e6 for mebi in _settled(actors))
    return Row("memory", f"each of {RANKS} ranks, beyond one that only imported torch (PSS)", "MB", beyond, BEYOND)


def _settled(pids: Sequence[int]) -> list[float]:
    """MiB of PSS of each process, once their median changes no more."""
    before, deadline = 0.0, time.monotonic() + 60
    while time.monotonic() < deadline:
        now = [memory_of(pid)["pss"] for pid in pids]
        if abs(statistics.median(now) - before) < SETTLED:
            return now
        before = statistics.median(now)
        time.sleep(1)
    raise BenchmarkError("the memory of ranks at rest does not settle")


def _growth(caller: Side, rank: int, verb: str, calls: int) -> dict[str, float]:
    """Bytes by which caller and rank grow per call. A first fifth of the calls fills pools and caches."""
    caller.ask("many", verb, calls // 5, timeout=PATIENCE)
    pids = {"caller": caller.pid, "rank": rank}
    before = {end: _rss(pid) for end, pid in pids.items()}
    caller.ask("many", verb, calls, timeout=PATIENCE)
    return {end: (_rss(pid) - before[end]) / calls for end, pid in pids.items()}


def _rss(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _flood(forge: Forge, calls: int) -> Row:
    """The most by which a rank grows while it is called so often at once. Its endpoint lets other tasks run first."""
    with side(forge, OURS) as caller:
        caller.ask("launch", 1)
        [rank] = caller.ask("pids")
        caller.ask("many", "yields", 1000)
        before = begin_peak(rank)
        caller.ask("flood", "yields", calls, timeout=PATIENCE)
        grown = peak_of(rank) - before
    return Row("memory", f"{calls:,} calls at once: growth of the rank, at most", "MiB", (grown,), FLOOD)
