"""forgectl as a user runs it, in a home of its own that is emptied at the end."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import BIN, PROGRAMS, BenchmarkError, Stamps, environment, seconds_of

ALIVE = ("starting", "running", "stopping")


@dataclass
class Forge:
    """One FORGECTL_HOME and the commands run in it."""

    home: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    more_env: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """What its commands run with."""
        return environment(FORGECTL_HOME=str(self.home), **self.more_env)

    def argv(self, *arguments: str) -> list[str]:
        """A forgectl command."""
        return [str(BIN / "forgectl"), *arguments]

    def seconds(self, *arguments: str, timeout: float = 300) -> float:
        """Run a command to its end; BenchmarkError where it fails."""
        return seconds_of(self.argv(*arguments), self.env, timeout=timeout)

    def folder(self) -> Path:
        """A new folder for one sample."""
        folder = self.home / f"sample-{next(self.numbers)}"
        folder.mkdir()
        return folder

    @staticmethod
    def spec(folder: Path, script: dict[str, Any], **settings: Any) -> Path:
        """A spec, in `folder` and named after it, of one mesh of a benchmark's program."""
        path = folder / "spec.yaml"
        spec = {"name": folder.name, "workdir": str(PROGRAMS), "scripts": {"bench": script}, **settings}
        path.write_text(json.dumps(spec))
        return path

    def status(self, name: str) -> dict[str, Any]:
        """The run of that name, as `status --json` has it, ended or not."""
        argv = self.argv("status", "-a", "--json")
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"forgectl status ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return run_of(json.loads(done.stdout), name)

    @contextmanager
    def running(self, program: str, *arguments: str, procs: int, **mesh: Any) -> Iterator[tuple[str, Stamps]]:
        """A detached run of a benchmark's program: its name and stamps. Leaving the block shuts it down."""
        stamps = Stamps(self.folder())
        name = stamps.folder.name
        script = {"run": [program, str(stamps.folder), *arguments], "procs": procs, **mesh}
        self.seconds("launch", str(self.spec(stamps.folder, script)), "-d")
        try:
            yield name, stamps
        finally:
            self._end(name)

    def _end(self, name: str) -> None:
        if (run := self.status(name))["state"] not in ALIVE:
            return
        try:
            self.seconds("shutdown", "--run", run["run"], "--timeout", "1")
        except BenchmarkError:
            if self.status(name)["state"] in ALIVE:  # else it ended by itself in between
                raise

    def close(self) -> list[str]:
        """Shut all down; says what was left all the same, after it was killed."""
        problems = []
        try:
            self.seconds("shutdown", "--all", "--timeout", "1")
        except (BenchmarkError, OSError, subprocess.SubprocessError) as e:
            problems.append(f"shutdown --all: {e}")
        for pid, command in self._left():
            problems.append(f"left behind: pid {pid} ({command})")
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)
        return problems

    def _left(self) -> list[tuple[int, str]]:
        mark = f"FORGECTL_HOME={self.home}".encode()
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = mark in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended, or is somebody else's
            if ours and command:
                left.append((int(folder.name), command.strip()))
        return left


def new_forge() -> Forge:
    """A forge in a new temporary folder; BenchmarkError where forgectl is not installed."""
    if not (BIN / "forgectl").exists():
        raise BenchmarkError(f"there is no {BIN / 'forgectl'}: install forgectl for {sys.executable}")
    return Forge(Path(tempfile.mkdtemp(prefix="forge-bench-")))


def run_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The run of that name in a status document."""
    for run in document["runs"]:
        if run["name"] == name:
            found: dict[str, Any] = run
            return found
    raise BenchmarkError(f"status does not know the run {name}")


def ranks_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The ranks of a run's only mesh."""
    ranks: list[dict[str, Any]] = run["meshes"][0]["ranks"]
    return ranks
