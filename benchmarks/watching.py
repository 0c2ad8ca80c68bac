"""How long commands that only look take, and how soon a rank's death can be seen."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

from forge import Forge, ranks_of, run_of
from measure import BenchmarkError, Row, python, seconds_of

COMMANDS = (("status",), ("--help",))
HEAVY = ("torch", "monarch")
SEEN_WITHIN = 0.2  # seconds
OF_IMPORT = 3.0
VICTIM = 5

Lines = queue.Queue[tuple[float, str]]


def cli(forge: Forge, options: Namespace) -> Iterator[Row]:
    """`status` and `--help` against the bare import of what draws them, by turns."""
    bare: list[float] = []
    ours: dict[str, list[float]] = {}
    for _ in range(max(5, options.repeat)):
        bare.append(seconds_of(python("import click, rich")))
        for command in COMMANDS:
            ours.setdefault(" ".join(command), []).append(forge.seconds(*command))
    base = Row("cli", "bare import click, rich", "s", tuple(bare))
    yield base
    for name, samples in ours.items():
        yield Row("cli", f"forgectl {name}", "s", tuple(samples))
        ratios = tuple(a / b for a, b in zip(samples, bare, strict=True))
        yield Row("cli", f"forgectl {name} / bare import", "", ratios, OF_IMPORT)
    for command in COMMANDS:
        heavy = float(len(heavy_imports(forge, *command)))
        what = f"forgectl {' '.join(command)}: modules of {' or '.join(HEAVY)} imported"
        yield Row("cli", what, "", (heavy,), 0.0, "the command line imports neither")


def heavy_imports(forge: Forge, *arguments: str) -> list[str]:
    """The modules that a forgectl command imports and should not, by CPython's own account of its imports."""
    env = {**forge.env, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(forge.argv(*arguments), env=env, capture_output=True, text=True, check=True)
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line]
    if "forgectl" not in modules:
        raise BenchmarkError("what forgectl wrote to stderr has no times of its imports")
    return [m for m in modules if m.partition(".")[0] in HEAVY]


def death(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the SIGKILL of a rank to the status that shows it: for one who watches, and for one who asks."""
    watched, asked, idle = [], [], []
    for _ in range(options.repeat):
        with forge.running("stamp_and_stay.py", procs=8) as (name, stamps):
            stamps.last(8)
            watched.append(_watched(forge, name))
        with forge.running("stamp_and_stay.py", procs=8) as (name, stamps):
            stamps.last(8)
            idle.append(forge.seconds("status", "-a", "--json"))
            asked.append(_asked(forge, name))
    because = "seen by status within 0.2 s"
    yield Row("death", "to a line of `status -w --json`", "s", tuple(watched), SEEN_WITHIN, because)
    plain = Row("death", "`status --json` while nothing happens", "s", tuple(idle))
    yield plain
    limit, because = plain.value + SEEN_WITHIN, f"{because}, and what the command takes"
    yield Row("death", "to the return of a `status --json` that has it", "s", tuple(asked), limit, because)


def _dead(run: dict[str, Any]) -> bool:
    return ranks_of(run)[VICTIM]["state"] in ("killed", "exited")


def _kill(run: dict[str, Any]) -> float:
    killed = time.monotonic()
    os.kill(ranks_of(run)[VICTIM]["pid"], signal.SIGKILL)
    return killed


def _asked(forge: Forge, name: str) -> float:
    killed = _kill(forge.status(name))
    while not _dead(forge.status(name)):
        if time.monotonic() - killed > 30:
            raise BenchmarkError("a rank was killed 30 s ago, and `status --json` does not say so")
    return time.monotonic() - killed


def _pass_on(out: Iterable[str], lines: Lines) -> None:
    for line in out:
        lines.put((time.monotonic(), line))


def _watched(forge: Forge, name: str) -> float:
    lines: Lines = queue.Queue()
    argv = forge.argv("status", "-a", "-w", "--json")
    with subprocess.Popen(argv, env=forge.env, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        threading.Thread(target=_pass_on, args=(watcher.stdout, lines), daemon=True).start()
        try:
            killed = _kill(run_of(json.loads(lines.get(timeout=30)[1]), name))
            while True:
                at, line = lines.get(timeout=30)
                if _dead(run_of(json.loads(line), name)):
                    return at - killed
        except queue.Empty:
            raise BenchmarkError("`status -w --json` said nothing for 30 s") from None
        finally:
            watcher.terminate()
