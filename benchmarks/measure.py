"""What a benchmark yields: rows of samples with their limits; and the small tools that take samples."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).with_name("programs")
BIN = Path(sys.executable).parent
MEBI = 2**20


class BenchmarkError(Exception):
    """Something that is measured did not do what it should; the message says what."""


@dataclass(frozen=True)
class Row:
    """One quantity. `limit` is the most that its median may be, or with `least` the least; `because`: why so much."""

    section: str
    what: str
    unit: str
    samples: tuple[float, ...]
    limit: float | None = None
    because: str = ""
    least: bool = False

    @property
    def value(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def ok(self) -> bool | None:
        """Whether the value keeps the limit; None where there is none."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.least else self.value <= self.limit


def environment(**more: str) -> dict[str, str]:
    """This process's environment, the interpreter's programs first, and one thread a rank for every side.

    Nothing of what tells Python to run otherwise than by default: with PYTHONDONTWRITEBYTECODE each process would
    compile again what was edited since it was installed.
    """
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def seconds_of(argv: Sequence[str], env: dict[str, str] | None = None, *, timeout: float = 300) -> float:
    """Seconds that a command takes from its start to its end; BenchmarkError where it fails."""
    began = time.monotonic()
    done = subprocess.run(
        argv,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,  # who fails says why
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise BenchmarkError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds


def python(code: str) -> list[str]:
    """The command that runs `code` in this interpreter."""
    return [sys.executable, "-c", code]


@contextmanager
def started(argv: Sequence[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own; it is asked to end, then made to, when the block is left."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], grace: float = 30) -> None:
    """SIGTERM, and SIGKILL after the grace."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(true: Callable[[], bool], what: str, *, timeout: float = 180) -> None:
    """Wait until `true()`; BenchmarkError when it takes too long. No sample depends on how often it asks."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Stamps:
    """The folder in which ranks leave their stamps (see programs/stamp.py)."""

    folder: Path

    def last(self, ranks: int, generation: int = 0, process: subprocess.Popen[bytes] | None = None) -> float:
        """When the last of the ranks stamped, once all have; `process`, if given, must not fail meanwhile."""

        def all_there() -> bool:
            if process is not None and process.poll():
                raise BenchmarkError(f"{process.args!r} ended with {process.returncode} before all ranks were up")
            return len(self.read(generation)) == ranks

        wait_for(all_there, f"the stamps of {ranks} ranks of generation {generation}")
        return max(at for at, _ in self.read(generation).values())

    def read(self, generation: int = 0) -> dict[int, tuple[float, int]]:
        """Time and pid by rank, of the ranks that have stamped."""
        stamps = {}
        for path in self.folder.glob(f"{generation}-*"):
            if not path.suffix:
                at, pid = path.read_text().split()
                stamps[int(path.name.partition("-")[2])] = (float(at), int(pid))
        return stamps


def memory_of(pid: int) -> dict[str, float]:
    """MiB that a process holds: rss, and pss, which splits shared pages among those who share them."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return {"rss": kib["Rss"] * 1024 / MEBI, "pss": kib["Pss"] * 1024 / MEBI}


def begin_peak(pid: int) -> float:
    """MiB that a process holds now; its peak so far is forgotten."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_of(pid)


def peak_of(pid: int) -> float:
    """MiB that a process held at most."""
    return kib_of(Path(f"/proc/{pid}/status"), "VmHWM") * 1024 / MEBI


def kib_of(file: Path, key: str) -> int:
    """The number of a line `KEY: 12 kB`; BenchmarkError if there is none."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise BenchmarkError(f"{file} does not tell {key}")


def cpu_of(pid: int, *, children: bool = False) -> float:
    """Seconds of processor that a process has used; those of its ended children instead, to 0.01 s."""
    if not children:
        return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) has it
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
