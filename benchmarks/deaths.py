"""How soon deaths are noticed and made good, beside torchrun, Monarch and Ray: `python benchmarks/deaths.py …`.

As launch.py: a home of its own, sides by turns, medians, exit 1 where a limit was missed. RAY_PYTHON=…/bin/python names
an interpreter that has Ray and torch, so that Ray need not be installed beside forgectl.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator

import messages
import starting
import watching
from forge import Forge
from harness import run
from measure import PROGRAMS, Row, Stamps, environment, started
from starting import torchrun

RANKS = 4


def ended(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the SIGKILL of a rank to the end of the command that launched it, forgectl and torchrun by turns."""
    program = str(PROGRAMS / "stamp_and_stay.py")
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeat):
        for name in ("torchrun", "forgectl"):
            stamps = Stamps(forge.folder())
            env = environment(TMPDIR=str(stamps.folder)) if name == "torchrun" else forge.env
            argv = (
                [*torchrun("--nproc-per-node", str(RANKS)), program, str(stamps.folder)]
                if name == "torchrun"
                else forge.argv("run", "-n", str(RANKS), program, str(stamps.folder))
            )
            with started(argv, env, stamps.folder / "log") as process:
                stamps.last(RANKS, process=process)
                killed = time.monotonic()
                os.kill(stamps.read()[1][1], signal.SIGKILL)
                process.wait(120)
                samples[name].append(time.monotonic() - killed)
    for name, values in samples.items():
        yield Row("ended", f"the whole command, {RANKS} ranks: {name}", "s", tuple(values))


SECTIONS = {"death": messages.death, "status": watching.death, "ended": ended, "restart": starting.restart}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures how soon deaths are noticed and made good on this machine", [RANKS]))
