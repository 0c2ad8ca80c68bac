"""Measures the syncing of a workdir beside `rsync -a` over the same ssh: `python benchmarks/syncing.py [--json FILE]`.

An sshd of its own on 127.0.0.1 is the host, so that both ends share this machine. Sides take turns; values are medians.
forgectl's times are those of a launch: `connected` begins with an open connection, as every launch needs one anyway.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from forge import Forge
from harness import Sections, run
from loopback import sshd
from measure import MEBI, BenchmarkError, Row, seconds_of

from forgectl.sync.scan import scan
from forgectl.sync.sender import push
from forgectl.transport.destination import Destination
from forgectl.transport.ssh import dial

OF_RSYNC = 2.0
AGAIN_WITHIN = 1.0  # seconds
CASES = {"64 MiB in 1,000 files": (1_000, 64 * MEBI // 1_000), "10,000 files of 1 KiB": (10_000, 1024)}
LIMITED = "64 MiB in 1,000 files"


class Sides:
    """The two ways to bring one workdir to the host, each time to a new place until that is cleared."""

    def __init__(self, workdir: Path, folder: Path, ssh: str) -> None:
        self._workdir = workdir
        self._folder = folder
        self._ssh = ssh
        self._key = f"benchmark-{os.getpid()}"
        self._trees: set[Path] = set()

    def rsync(self) -> float:
        """Seconds of the whole command."""
        to = self._folder / "rsync"
        return seconds_of(["rsync", "-a", "-e", self._ssh, f"{self._workdir}/", f"loopback:{to}/"], timeout=120)

    def forgectl(self) -> tuple[float, float]:
        """Seconds with the dialling, and without."""
        began = time.monotonic()
        there = dial(Destination("loopback", "loopback", sys.executable))
        try:
            connected = time.monotonic()
            tree = scan(self._workdir, 1 << 40, self._folder / "cache")
            pushed = push(there.line, tree, self._key, "loopback")
            self._trees.add(Path(pushed.path))
            ended = time.monotonic()
        finally:
            there.close()
        return ended - began, ended - connected

    def clear(self) -> None:
        """Remove what has arrived, and what the launching side remembers."""
        for tree in self._trees:
            for name in (tree.name, *(f".{what}.{tree.name}" for what in ("index", "lock", "staged", "draft"))):
                _remove(tree.with_name(name))
        _remove(self._folder / "rsync")
        _remove(self._folder / "cache")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fill(workdir: Path, files: int, size: int) -> None:
    """So many files, a hundred a folder, of bytes that no compression makes fewer."""
    chance = random.Random(files)
    for number in range(files):
        folder = workdir / f"folder-{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(chance.randbytes(size))


def syncing(forge: Forge, options: Namespace) -> Iterator[Row]:
    """The first sync, and the next when nothing has changed, by turns with rsync."""
    if not shutil.which("rsync"):
        raise BenchmarkError("there is no rsync here to compare with: install it")
    folder = Path(tempfile.mkdtemp(prefix="forge-sync-", dir="/var/tmp"))  # where hosts have their trees
    try:
        with sshd(folder / "sshd") as ssh:
            os.environ["FORGECTL_SSH"] = ssh
            seconds_of([*shlex.split(ssh), "loopback", "true"])
            for case, (files, size) in CASES.items():
                fill(folder / case / "workdir", files, size)
                yield from _compare(case, Sides(folder / case / "workdir", folder / case, ssh), options.repeat)
    finally:
        os.environ.pop("FORGECTL_SSH", None)
        shutil.rmtree(folder)


def _compare(case: str, sides: Sides, repeat: int) -> Iterator[Row]:
    samples: dict[str, list[float]] = defaultdict(list)
    try:
        sides.forgectl()  # ships forgectl's own code, once for all launches
        sides.clear()
        for _ in range(repeat):
            for which in ("first", "again"):
                samples[f"{which}: rsync -a"].append(sides.rsync())
                whole, connected = sides.forgectl()
                samples[f"{which}: forgectl, with dialling"].append(whole)
                samples[f"{which}: forgectl, connected"].append(connected)
            sides.clear()
    finally:
        sides.clear()
    limited = case == LIMITED
    for what, values in samples.items():
        limit = AGAIN_WITHIN if limited and what.startswith("again: forgectl") else None
        yield Row("syncing", f"{case}, {what}", "s", tuple(values), limit)
    for side in ("connected", "with dialling"):
        pairs = zip(samples[f"first: forgectl, {side}"], samples["first: rsync -a"], strict=True)
        ratios = tuple(ours / theirs for ours, theirs in pairs)
        yield Row("syncing", f"{case}, first: forgectl, {side} / rsync", "", ratios, OF_RSYNC if limited else None)


SECTIONS: Sections = {"syncing": syncing}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures the syncing of a workdir beside rsync", [1]))
