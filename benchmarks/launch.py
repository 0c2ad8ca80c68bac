"""Measures forgectl beside torchrun on this machine: `python benchmarks/launch.py [--only launch,cli] …`.

Runs in a temporary FORGECTL_HOME (under TMPDIR, which must have room for 2 GB), ends all that it started, and
exits 1 where a limit was missed or a section failed. Sides take turns; values are medians.
"""

from __future__ import annotations

import sys

import starting
import stopping
import watching
import weighing
from harness import Sections, run

SECTIONS: Sections = {
    "launch": starting.launch,
    "restart": starting.restart,
    "shutdown": stopping.shutdown,
    "stubborn": stopping.stubborn,
    "cli": watching.cli,
    "death": watching.death,
    "memory": weighing.memory,
    "flood": weighing.flood,
}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures forgectl beside torchrun on this machine", [2, 8, 16]))
