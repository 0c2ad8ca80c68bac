"""Measures actors and services beside plain Monarch, and Ray where it is installed: `python benchmarks/messages.py …`.

As launch.py: a home of its own, sides by turns, medians, exit 1 where a limit was missed. Each side is a process of
its own (sides.py). Monarch's runs in a network namespace, which takes root, or a kernel that lets users make one.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator

import calling
import growing
from forge import Forge
from harness import Sections, run
from measure import Row
from sides import OURS, PLAIN, SIDES, apart, side

OF_MONARCH = {8: 0.18, 16: 0.12}
MOST_OF_OTHERS = 16  # actors: 32 take Monarch a minute and 7 GB
KILLS = 100
DEATH, DEATH_AT_WORST = 0.02, 0.1  # seconds


def start(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the start of a script to the first answer of all its actors, which import torch.

    Monarch's time includes 0.01 s in which its namespace is made.
    """
    apart()  # finds out, once, how to make one
    for n in options.n:
        sides = SIDES if n <= MOST_OF_OTHERS else (OURS,)
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.repeat):
            for name in sides:
                began = time.monotonic()
                with side(forge, name) as script:
                    samples[name].append(script.ask("first_answer", n) - began)
        what = f"{n} actor{'s' * (n > 1)}"
        for name, values in samples.items():
            yield Row("start", f"{what}: {name}", "s", tuple(values))
        if PLAIN in samples:
            yield calling.ratio("start", what, samples[OURS], samples[PLAIN], OF_MONARCH.get(n))


def death(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the SIGKILL of a rank to the exception of a call that waits for it.

    Our mesh is restarted after each death, so one process gives many samples. The others give one a process.
    """
    with side(forge, OURS) as ours:
        ours.ask("launch", 4, {"restart": {"max": KILLS, "backoff": 0}})
        took = ours.ask("deaths", KILLS)
    yield Row("death", f"a waiting call: {OURS}", "s", tuple(took), DEATH)
    yield Row("death", f"a waiting call, the slowest of {KILLS}: {OURS}", "s", (max(took),), DEATH_AT_WORST)
    for name in SIDES[1:]:
        took = []
        for _ in range(options.repeat):
            with side(forge, name) as other:
                other.ask("launch", 4)
                took += other.ask("deaths", 1)
        yield Row("death", f"a waiting call: {name}", "s", tuple(took))


SECTIONS: Sections = {
    "start": start,
    "call": calling.call,
    "service": calling.service,
    "flight": calling.flight,
    "stream": calling.stream,
    "argument": calling.argument,
    "death": death,
    "memory": growing.memory,
}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures actors beside plain Monarch on this machine", [1, 8, 16, 32]))
