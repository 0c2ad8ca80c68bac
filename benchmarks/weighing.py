"""What controller and agent weigh: with many ranks, and while a rank floods its log."""

from __future__ import annotations

import functools
import statistics
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forge import Forge, ranks_of
from measure import PROGRAMS, BenchmarkError, Row, environment, memory_of, started, wait_for

RANKS = 64
LIMIT = 57.2  # MiB: 60 MB
SLOWER = 1.1
PLAIN, UNBUFFERED = "plain file", "plain file, unbuffered"


def memory(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Controller and agent of 64 ranks that stay."""
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeat):
        with forge.running("stamp_and_stay.py", procs=RANKS) as (name, stamps):
            stamps.last(RANKS)
            for what, mebi in weights(forge.status(name)).items():
                samples[what].append(mebi)
    for what, values in samples.items():
        yield Row("memory", f"{RANKS} ranks: {what}", "MiB", tuple(values), LIMIT)


def weights(run: dict[str, Any]) -> dict[str, float]:
    """MiB of a run's controller and agent, such as {"controller rss": 30.1, …}."""
    pids = {"controller": run["controller"]["pid"], "agent": run["hosts"][0]["agent_pid"]}
    return {f"{who} {kind}": mebi for who, pid in pids.items() for kind, mebi in memory_of(pid).items()}


def flood(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A rank that writes 1 GB, against the same program with a plain file for its output, by turns.

    The plain file twice: as Python writes it by default, and with PYTHONUNBUFFERED, when Python does without its buffer
    and is quicker. A last turn watches the rank; apart, because what watches takes processors that the plain file has
    to itself.
    """
    sides: dict[str, Callable[[Forge, int, str], tuple[float, float]]] = {
        PLAIN: _plain,
        UNBUFFERED: functools.partial(_plain, PYTHONUNBUFFERED="1"),
        "rank": _rank,
    }
    for how in ("lines", "chunks"):
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.repeat):
            for side, took in sides.items():
                seconds, busy = took(forge, options.flood_bytes, how)
                samples[side].append(seconds)
                samples[f"{side}, processor"].append(busy)
            _watched(forge, options.flood_bytes, how, samples)
        yield from _flood_rows(how, samples)


def _flood_rows(how: str, samples: dict[str, list[float]]) -> Iterator[Row]:
    plain, before = (statistics.median(samples[side]) for side in (PLAIN, "status before"))
    limits = {
        "rank": (SLOWER * plain, "a tenth more than a plain file"),
        "status meanwhile": (2 * before + 0.1, "twice as before and 0.1 s"),
        "controller rss, most": (LIMIT, ""),
        "agent rss, most": (LIMIT, ""),
    }
    for what, values in samples.items():
        unit = "MiB" if what.endswith("most") else "s"
        limit, because = limits.get(what, (None, ""))
        yield Row("flood", f"{how}: {what}", unit, tuple(values), limit, because)


def _go(folder: Path, size: int) -> None:
    """Have the flood begin, with as much memory at hand as it fills.

    A virtual machine gives memory that was free for some seconds back to its host (free page reporting), and the
    next write to it takes up to ten times as long: whichever side came sooner after the last would win.
    """
    scratch = folder / "scratch"
    with scratch.open("wb") as file:
        for _ in range(size // 2**20 + 64):
            file.write(b"." * 2**20)
    scratch.unlink()
    (folder / "go").touch()


def _plain(forge: Forge, size: int, how: str, **more_env: str) -> tuple[float, float]:
    folder = forge.folder()
    argv = [sys.executable, str(PROGRAMS / "write_lines.py"), str(folder), str(size), how]
    with started(argv, environment(**more_env), folder / "log") as process:
        _go(folder, size)
        process.wait(300)
    _check_and_remove(folder / "log", size)
    return _took(folder)


def _rank(forge: Forge, size: int, how: str) -> tuple[float, float]:
    with forge.running("write_lines.py", str(size), how, procs=1) as (name, stamps):
        log = Path(ranks_of(forge.status(name))[0]["log"])
        _go(stamps.folder, size)
        took = _took(stamps.folder)
    _check_and_remove(log, size)
    return took


def _watched(forge: Forge, size: int, how: str, samples: dict[str, list[float]]) -> None:
    with forge.running("write_lines.py", str(size), how, procs=1) as (name, stamps):
        run = forge.status(name)
        samples["status before"].append(forge.seconds("status", "--json"))
        (stamps.folder / "go").touch()
        most: dict[str, float] = {}
        while not (stamps.folder / "seconds").exists() or not most:
            most = {k: max(v, most.get(k, 0)) for k, v in weights(run).items()}
            samples["status meanwhile"].append(forge.seconds("status", "--json"))
        for what, mebi in most.items():
            samples[f"{what}, most"].append(mebi)
    _check_and_remove(Path(ranks_of(run)[0]["log"]), size)


def _took(folder: Path) -> tuple[float, float]:
    path = folder / "seconds"
    wait_for(path.exists, f"the end of the flood in {folder}", timeout=300)
    seconds, busy = path.read_text().split()
    return float(seconds), float(busy)


def _check_and_remove(log: Path, size: int) -> None:
    if not 0.99 * size <= log.stat().st_size <= size + 4096:
        raise BenchmarkError(f"{log} has {log.stat().st_size} bytes, not {size}")
    log.unlink()
