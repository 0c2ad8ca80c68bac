"""Measures what the loss of a host costs with a spare: `python benchmarks/spares.py`.

It needs root, for tests/lab, whose three hosts on this machine have a real sshd each: two ranks, and a spare. Each
sample is the time from the loss to the first all_reduce that is done on every rank of the next generation. As
launch.py: a home of its own, cases by turns, medians, exit 1 where a limit was missed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from forge import Forge
from harness import Sections, run
from measure import Row, Stamps, wait_for
from reaching import lab

if TYPE_CHECKING:
    from tests.lab.lab import Lab

LEASE = 3.0
AFTER_LEASE = 2.0
SAID = 3.0
"""The most that a loss may cost in seconds: beyond the lease, and where ssh says that the agent is gone."""
SPARE = "host3"


def losses(forge: Forge, options: Namespace) -> Iterator[Row]:
    """The first host, with rank 0 and the store, and the other, each lost in two ways."""
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    with lab(forge) as hosts:

        def cut(lost: str, name: str) -> None:
            hosts.cut(lost)

        def kill(lost: str, name: str) -> None:
            [pid] = (h["agent_pid"] for h in forge.status(name)["hosts"] if h["name"] == lost)
            hosts.kill(lost, pid)

        for _ in range(options.repeat):
            for how, lose, lease in (("link down", cut, LEASE), ("ssh says it is gone", kill, 60.0)):
                for which, lost in (("first host", "host1"), ("other host", "host2")):
                    samples[how, which].append(_lose(forge, hosts, lost, lose, lease))
    for (how, which), values in samples.items():
        limit = LEASE + AFTER_LEASE if how == "link down" else SAID
        because = f"a lease of {LEASE:g} s, and {AFTER_LEASE:g}" if how == "link down" else ""
        yield Row("spares", f"{which}, {how}: until all_reduce with the spare", "s", tuple(values), limit, because)


def _lose(forge: Forge, hosts: Lab, lost: str, lose: Callable[[str, str], None], lease: float) -> float:
    """Seconds from the loss of a host to the first all_reduce of the next generation."""
    stamps = Stamps(Path(tempfile.mkdtemp(dir=hosts.shared)))
    script = {"run": ["meet_on.py", str(stamps.folder)], "procs": 2, "hosts": 2, "restart": {"max": 1}}
    places = [{"name": name, "python": sys.executable} for name in hosts.names]
    spec = forge.spec(forge.folder(), script, hosts=places, lease=lease, spares=1)
    name = spec.parent.name
    forge.seconds("launch", str(spec), "-d")
    try:
        stamps.last(2)
        wait_for(lambda: _is_warm(forge, name), "the spare")
        began = time.monotonic()
        lose(lost, name)
        return stamps.last(2, generation=1) - began
    finally:
        hosts.heal()
        forge.seconds("shutdown", name, "--timeout", "1")


def _is_warm(forge: Forge, name: str) -> bool:
    return any(h["name"] == SPARE and h.get("spare") == "warm" for h in forge.status(name)["hosts"])


SECTIONS: Sections = {"spares": losses}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures the loss of a host with a spare", [2]))
