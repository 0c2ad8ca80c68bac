"""Measures actors and services beside plain Monarch, and Ray where it is installed: `python benchmarks/actors.py …`.

As launch.py: a home of its own, sides by turns, medians, exit 1 where a limit was missed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from forge import Forge
from harness import Sections, run
from measure import PROGRAMS, BenchmarkError, Row, environment, started

OF_MONARCH = {8: 0.25, 16: 0.15}
CALL, ROUTE = 1.15, 1.5
DEATH = 0.2  # seconds
PER_CALL = 100.0  # bytes: what Monarch's own growth per call differs by from one time to the next
SIDES = ("forgectl", "monarch", *(("ray",) if importlib.util.find_spec("ray") else ()))


def program(forge: Forge, work: str, side: str, ranks: int) -> Any:
    """Run benchmarks/programs/actors.py; what it measured."""
    folder = forge.folder()
    argv = [sys.executable, str(PROGRAMS / "actors.py"), work, side, str(folder), str(ranks)]
    env = environment(FORGECTL_HOME=str(forge.home), TMPDIR=str(folder), PYTHONPATH=str(PROGRAMS))
    with started(argv, env, folder / "log") as process:
        process.wait(1200)
    if process.returncode:
        raise BenchmarkError(
            f"{work} by {side} ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}"
        )
    return json.loads((folder / "result").read_text())


def start(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the start of a script to the first answer of all its actors, which import torch."""
    for n in options.n:
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.repeat):
            for side in SIDES:
                began = time.monotonic()
                samples[side].append(program(forge, "start", side, n) - began)
        for side, values in samples.items():
            yield Row("start", f"{n} actors: {side}", "s", tuple(values))
        ratios = tuple(a / b for a, b in zip(samples["forgectl"], samples["monarch"], strict=True))
        yield Row("start", f"{n} actors: forgectl / monarch", "", ratios, OF_MONARCH.get(n))


def call(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A call through a handle, and Monarch's own, by turns in one process."""
    for ranks, both in program(forge, "call", "forgectl", 4).items():
        yield from _beside("call", f"{ranks} rank{'s' * (ranks != '1')}", both, CALL)


def service(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A route through a service of 2 replicas beside a plain call; and 2,000 requests at once."""
    found = program(forge, "service", "forgectl", 2)
    yield from _beside("service", "route", found["both"], ROUTE)
    yield Row("service", "2,000 at once: lost", "", (found["lost"],), 0)
    yield Row("service", "2,000 at once: all answered after", "s", (found["seconds"],))


def _beside(section: str, what: str, both: list[tuple[float, float]], limit: float) -> Iterator[Row]:
    ours, plain = zip(*both, strict=True)
    yield Row(section, f"{what}: forgectl", "ms", tuple(1000 * s for s in ours))
    yield Row(section, f"{what}: monarch", "ms", tuple(1000 * s for s in plain))
    yield Row(section, f"{what}: forgectl / monarch", "", tuple(a / b for a, b in both), limit)


def death(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the SIGKILL of a rank to the exception of a call that waits for it."""
    for side in SIDES:
        took = tuple(program(forge, "death", side, 4) for _ in range(options.repeat))
        yield Row("death", f"a waiting call: {side}", "s", took, DEATH if side == "forgectl" else None)


def memory(forge: Forge, options: Namespace) -> Iterator[Row]:
    """How much the caller grows per call, over 100,000, beyond what plain Monarch's calls make it grow."""
    found = program(forge, "memory", "forgectl", options.calls)
    plain = (found["plain"], found["plain again"])
    yield Row("memory", f"{options.calls:,} calls, plain Monarch: bytes per call", "", plain)
    for what in ("handle", "service"):
        label = f"{options.calls:,} calls, {what}: bytes per call"
        yield Row("memory", label, "", (found[what],), max(*plain, 0) + PER_CALL, "Monarch's own, and 100 bytes")


SECTIONS: Sections = {"start": start, "call": call, "service": service, "death": death, "memory": memory}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures actors beside plain Monarch on this machine", [8, 16]))
