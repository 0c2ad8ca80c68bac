"""Checkpoints of a training: a folder a step, written in the background, complete or not there at all.

A folder `step-000120` has the files of torch.distributed.checkpoint, `extra.pt`, and `checkpoint.json`, which lists
them. Beside it are `latest`, with the name of the newest, and `highest_version`, of the weights ever published.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from actors.background import BackgroundWriter
from actors.world import World

LATEST, MANIFEST, EXTRA, HIGHEST = "latest", "checkpoint.json", "extra.pt", "highest_version"
STEP = re.compile(r"step-(\d{6,})")
# torch warns of a single process even where it was told of it by `no_dist`.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message has its path and the cause."""


@dataclass(frozen=True)
class Manifest:
    """`checkpoint.json`: what a checkpoint is of, and the sizes of its files in bytes, by which a cut is found."""

    step: int
    version: int
    ranks: int
    files: Mapping[str, int]


class Checkpoints(BackgroundWriter):
    """The checkpoints in a folder that all ranks can reach. All ranks call each method, in the same order.

    `wait` and `check` raise CheckpointError if the last save failed.
    """

    def __init__(self, folder: str | Path, keep: int = 2, world: World | None = None) -> None:
        """Keep the newest `keep` checkpoints. Raises ValueError if that is less than one."""
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint must stay")
        super().__init__("checkpoint")
        self.folder, self.keep = Path(folder).resolve(), keep
        self.written: int | None = None
        """The step of the last checkpoint that this object has completed."""
        self._world = world or World()
        self._writers = self._world.another()

    # ------------------------------------------------------------ write

    def save(self, step: int, version: int, state: Mapping[str, Any], extra: Any = None) -> Path:
        """Copy `state` to memory of the CPU; a thread writes it to the folder that is returned.

        `state` has what `torch.distributed.checkpoint` takes: tensors, sharded or not, and plain values. `extra` is any
        object that can be pickled; that of rank 0 counts. An earlier save is waited for; raises CheckpointError if that
        failed.
        """
        self.wait()
        final = self.folder / f"step-{step:06d}"
        partial = self.folder / f".{final.name}.partial"
        try:
            self._world.from_leader(lambda: self._make_room(partial))
            saved = dcp.async_save(
                dict(state),
                checkpoint_id=partial,
                process_group=self._writers.group,
                no_dist=self._world.size == 1,
            )
        except OSError as e:
            raise self._failed(partial, e) from e
        self._begin(self._complete, saved, partial, final, step, version, extra)
        return final

    def _complete(self, saved: Future[Any], partial: Path, final: Path, step: int, version: int, extra: Any) -> None:
        """Give a checkpoint its name once all ranks have written. DCP reports to rank 0 when they have."""
        try:
            saved.result()
            if self._world.rank == 0:
                torch.save(extra, partial / EXTRA)
                files = {path.name: path.stat().st_size for path in partial.iterdir()}
                manifest = Manifest(step, version, self._world.size, files)
                _write(partial / MANIFEST, json.dumps(asdict(manifest), indent=1))
                if final.exists():  # of a training that was resumed from before it
                    shutil.rmtree(final)
                partial.rename(final)
                _write(self.folder / LATEST, final.name)
                self._drop_old(step)
        except (CheckpointException, Exception) as e:
            raise self._failed(partial, e) from e
        self.written = step

    def _make_room(self, partial: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*.partial"):  # by ranks that died while they wrote
            shutil.rmtree(left)
        partial.mkdir()

    def _drop_old(self, step: int) -> None:
        for old in [n for n in self._steps() if n < step][self.keep - 1 :]:
            shutil.rmtree(self.folder / f"step-{old:06d}")

    def _failed(self, path: Path, error: BaseException) -> CheckpointError:
        cause, free = _cause(error), ""
        if self.folder.exists():
            free = f"; its disk has {shutil.disk_usage(self.folder).free / 1e6:,.1f} MB free"
        return CheckpointError(f"checkpoint {path} could not be written: {type(cause).__name__}: {cause}{free}")

    # ------------------------------------------------------------ read

    def newest(self) -> Path | None:
        """The checkpoint to resume from: the one that `latest` names, or the newest complete one before it.

        None if the folder has none. One that is cut short is named in the log. Raises CheckpointError if all are.
        """
        return self._world.from_leader(self._newest)

    def _newest(self) -> Path | None:
        steps = self._steps()
        latest = self.folder / LATEST
        if latest.exists() and (named := STEP.fullmatch(latest.read_text().strip())):
            steps = [step for step in steps if step <= int(named[1])] or steps
        wrong: list[str] = []
        for step in steps:
            path = self.folder / f"step-{step:06d}"
            if (problem := cut_short(path)) is None:
                if wrong:
                    logger.warning("%s; resuming from %s", "; ".join(wrong), path)
                return path
            wrong.append(problem)
        if wrong:
            raise CheckpointError(f"{'; '.join(wrong)}. Restore one, or remove {self.folder} to start anew")
        return None

    def load(self, path: Path, state: dict[str, Any]) -> tuple[Manifest, Any]:
        """Fill the tensors of `state`, of any number of ranks, in place; the manifest and what was given as `extra`.

        It unpickles: load only checkpoints that you trust. Raises CheckpointError, also for another model's.
        """
        if (problem := self._world.from_leader(lambda: cut_short(path))) is not None:
            raise CheckpointError(problem)
        try:
            dcp.load(state, checkpoint_id=path, process_group=self._world.group, no_dist=self._world.size == 1)
            extra = torch.load(path / EXTRA, weights_only=False)  # a dataset's position may be any object
        except (CheckpointException, Exception) as e:
            cause = _cause(e)
            raise CheckpointError(f"checkpoint {path} could not be loaded: {type(cause).__name__}: {cause}") from e
        return read_manifest(path), extra

    def _steps(self) -> list[int]:
        """Steps of all folders that have their final names, the newest first."""
        found = (STEP.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    # ------------------------------------------------------------ versions of weights

    def highest_version(self) -> int:
        """The highest version that was ever published, also after the last checkpoint; 0 at first."""
        path = self.folder / HIGHEST
        return int(path.read_text()) if path.exists() else 0

    def set_highest_version(self, version: int) -> None:
        """Remember that a version is taken; only rank 0 does."""
        if self._world.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / HIGHEST, str(version))


def read_manifest(path: Path) -> Manifest:
    """Of a checkpoint's folder; raises OSError or ValueError."""
    return Manifest(**json.loads((path / MANIFEST).read_text()))


def cut_short(path: Path) -> str | None:
    """What is missing of a checkpoint's folder; None if nothing is."""
    try:
        files = read_manifest(path).files
    except (OSError, ValueError, TypeError) as e:
        return f"checkpoint {path} is cut short: {MANIFEST} cannot be read ({type(e).__name__}: {e})"
    for name, size in files.items():
        there = (path / name).stat().st_size if (path / name).exists() else None
        if there != size:
            has = "is missing" if there is None else f"has {there:,} of {size:,} bytes"
            return f"checkpoint {path} is cut short: {name} {has}"
    return None


def checkpoints_around(path: str | Path) -> Path | None:
    """The folder of a trainer's checkpoints that a path is, or lies in; None for any other path."""
    resolved = Path(path).resolve()
    for folder in (resolved, *resolved.parents):
        if (folder / LATEST).is_file() and any(STEP.fullmatch(p.name) for p in folder.glob("step-*")):
            return folder
        if (folder / MANIFEST).is_file():
            return folder.parent
    return None


def _cause(error: BaseException) -> BaseException:
    """The system's error behind an error, if there is one; else the first rank's."""
    if isinstance(error, CheckpointException):
        error = next(e for e, _ in error.failures.values())
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return inner or error


def _write(path: Path, text: str) -> None:
    """Replace a small file at once: a reader sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
