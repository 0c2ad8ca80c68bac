"""How many runs fail whose ranks leave the process group as soon as they joined: `python benchmarks/leaving.py`.

In gloo a rank has joined when its own connections are made. The other end may still be reading the first bytes of one.
If the rank leaves now, the other end sees a connection that closes while it joins, and fails ("connectFullMesh …
closed by peer"). No launcher takes part in that: the first side has none. With TORCH_DIST_INIT_BARRIER=1 torch waits
for all ranks at the end of init_process_group.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator

from forge import Forge
from harness import run
from measure import PROGRAMS, BenchmarkError, Row, environment
from starting import torchrun

LEAVE = str(PROGRAMS / "leave.py")
BARRIER = {"TORCH_DIST_INIT_BARRIER": "1"}
PORT = 21000
PAIRS = 10
"""Runs without a launcher for each run of a launcher: they take as long together."""


def alone(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Two ranks without a launcher, of which one is slow."""
    del forge
    pairs = PAIRS * options.repeat
    for name, more in (("", {}), (", TORCH_DIST_INIT_BARRIER=1", BARRIER)):
        argv = [sys.executable, LEAVE, str(PORT), str(pairs)]
        done = subprocess.run(argv, env=environment(**more), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"leave.py ended with {done.returncode}\n{done.stderr[-2000:]}")
        yield Row(
            "alone", f"2 ranks, no launcher{name}: failures of {pairs} runs", "", (len(done.stdout.splitlines()),)
        )


def launched(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Launchers, by turns."""
    for n in options.n:
        sides = {
            "forgectl": (forge.argv("run", "-n", str(n), LEAVE), forge.env),
            "torchrun": ([*torchrun("--nproc-per-node", str(n)), LEAVE], environment()),
        }
        failed = dict.fromkeys(sides, 0)
        for _ in range(options.repeat):
            for name, (argv, env) in sides.items():
                done = subprocess.run(argv, env=env, capture_output=True, timeout=300, check=False)
                failed[name] += done.returncode != 0
        for name, count in failed.items():
            yield Row("launched", f"{n} ranks, {name}: failed of {options.repeat} runs", "", (count,))


if __name__ == "__main__":
    sections = {"alone": alone, "launched": launched}
    sys.exit(run(sections, "Counts runs that fail because their ranks leave at once", [4]))
