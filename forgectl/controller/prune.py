"""Removes the folders of ended runs that the policy does not keep: for `forgectl prune`, and after the end of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from forgectl.boot import BOOT
from forgectl.controller import run_dir
from forgectl.controller.retention import DEFAULT, VARIABLE, EndedRun, Keep, Superfluous, parse_keep, superfluous
from forgectl.controller.run_dir import RunDir
from forgectl.frozen import dataclass

SPARED_SECONDS = 3600.0
"""How long an ended run stays in any case, unless a user asks for less: somebody may be about to look at it."""
EVERY_SECONDS = 3600.0
"""How often the runs are looked through, at most, by themselves: the size of each must be found."""


@dataclass(frozen=True)
class Pruned:
    """The runs that were removed, and the files and folders that could not be."""

    runs: tuple[Superfluous, ...]
    errors: tuple[OSError, ...]


def policy(text: str | None = None) -> Keep:
    """The policy of `prune --keep`, else of $FORGECTL_KEEP, else the default; raises UsageError."""
    if text is not None:
        return parse_keep(text, "--keep")
    given = os.environ.get(VARIABLE, "")
    return parse_keep(given, VARIABLE) if given.strip() else DEFAULT


def ended_runs() -> list[EndedRun]:
    """All runs that have ended, with the room that each takes. Raises NotOursError."""
    return [
        EndedRun(run.run, ended, _size(run.path))
        for run in run_dir.all_runs()
        if run.has_ended and (ended := run.end_time()) is not None
    ]


def prune(keep: Keep, *, spared: float) -> Pruned:
    """Remove what is not kept; `spared` as in `superfluous`. Nothing of a run that lives is touched."""
    gone: list[Superfluous] = []
    errors: list[OSError] = []
    for one in superfluous(ended_runs(), keep, time.time(), spared=spared):
        try:
            if run_dir.take_away(RunDir(run_dir.runs_folder() / one.ended.run)):
                gone.append(one)
        except OSError as e:
            errors.append(e)
    return Pruned(tuple(gone), (*errors, *run_dir.remove_taken()))


def begin_pruning() -> None:
    """Prune in a process of its own, of low priority, if that was not done lately. Raises ForgeError, OSError."""
    keep = policy()
    if keep == Keep() or not _is_due(run_dir.runs_folder() / ".last-prune"):
        return
    subprocess.Popen(
        [sys.executable, BOOT, "prune"],
        env={name: value for name, value in os.environ.items() if not name.startswith("FORGE_")},  # not of this run
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _is_due(stamp: Path) -> bool:
    """Whether there may be something to prune; if so, the stamp tells others that it is being done."""
    now = time.time()
    try:
        if now - stamp.stat().st_mtime < EVERY_SECONDS:
            return False
    except FileNotFoundError:
        pass
    oldest = (ended for run in run_dir.all_runs() if (ended := run.end_time()) is not None)
    if all(now - ended < SPARED_SECONDS for ended in oldest):
        return False
    stamp.touch(0o600)
    return True


def _size(folder: Path) -> int:
    """The bytes that a folder takes on its disk; what vanishes meanwhile takes none."""
    total, left = 0, [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    total += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
        except OSError:
            continue
    return total


def main(arguments: list[str]) -> None:
    """`boot.py prune`: by the policy of the environment, with the lowest priority."""
    os.nice(19)
    prune(policy(), spared=SPARED_SECONDS)
