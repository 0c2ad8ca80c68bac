"""A cgroup v2 tree for each host, below the one of the tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


class Cgroups:
    """Makes them; `of` is empty, and `mount` "", where there is no cgroup v2 that we may write to."""

    def __init__(self, lab: str, names: Sequence[str]) -> None:
        self.of: dict[str, Path] = {}  # host → directory
        self.mount = ""  # where cgroup v2 is mounted, here and on the hosts
        mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
        point = next((m[1] for m in mounts if m[2] == "cgroup2"), None)
        entries = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((e[3:] for e in entries if e.startswith("0::/")), None)
        if point is not None and own is not None and os.access(f"{point}{own}", os.W_OK):
            self.mount = point
            self.of = {name: Path(f"{point}{own}") / f"{lab}-{name}" for name in names}
