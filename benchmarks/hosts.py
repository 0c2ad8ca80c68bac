"""Measures runs of many hosts: `python benchmarks/hosts.py [--only launch,call,scale] …`.

`launch` and `call` need root, for tests/lab, whose three hosts on this machine have a real sshd each; `scale` has hosts
that are all this machine. As launch.py: a home of its own, sides by turns, medians, exit 1 where a limit was missed.
"""

from __future__ import annotations

import sys

import calling
import reaching
import scaling
from harness import Sections, run

SECTIONS: Sections = {"launch": reaching.launch, "call": calling.far, "scale": scaling.scale}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures runs of many hosts", [1, 8, 32, 64]))
