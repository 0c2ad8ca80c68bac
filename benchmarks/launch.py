"""Measures forgectl beside torchrun on this machine: `python benchmarks/launch.py [--only launch,cli] …`.

Runs in a temporary FORGECTL_HOME (under TMPDIR, which must have room for 2 GB), ends all that it started, and
exits 1 where a limit was missed or a section failed. Sides take turns; values are medians.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import report
import starting
import stopping
import watching
import weighing
from forge import Forge, new_forge
from measure import BenchmarkError, Row, python, seconds_of
from rich.console import Console

Section = Callable[[Forge, argparse.Namespace], Iterator[Row]]

SECTIONS: dict[str, Section] = {
    "launch": starting.launch,
    "restart": starting.restart,
    "shutdown": stopping.shutdown,
    "stubborn": stopping.stubborn,
    "cli": watching.cli,
    "death": watching.death,
    "memory": weighing.memory,
    "flood": weighing.flood,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else None)
    parser.add_argument("--n", type=int, nargs="+", default=[2, 8, 16], help="ranks to launch")
    parser.add_argument("--repeat", type=int, default=3, help="samples of each value")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, of {', '.join(SECTIONS)}")
    parser.add_argument("--flood-bytes", type=int, default=10**9)
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := [name for name in options.only if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if options.repeat < 1 or min(options.n) < 1:
        parser.error("--repeat and --n must be at least 1")
    return options


def measure(options: argparse.Namespace, console: Console, rows: list[Row], failed: dict[str, str]) -> None:
    """Run the sections; one that fails does not stop the next."""
    forge = new_forge()
    try:
        seconds_of(python("import torch"))  # into the page cache, so that no side pays for the disk
        for name in options.only:
            console.print(f"measuring {name} …")
            try:
                for row in SECTIONS[name](forge, options):
                    rows.append(row)
                    console.print(f"  {row.what}: {report.quantity(row.value, row.unit)}", markup=False)
            except (BenchmarkError, subprocess.SubprocessError, OSError, LookupError, ValueError) as e:
                failed[name] = f"{type(e).__name__}: {e}"
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # a second Ctrl-C must not leave ranks behind
        if problems := forge.close():
            failed["cleanup"] = "\n".join(problems)


def main() -> int:
    """Measure, print, write; the exit code."""
    options = parse()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    interrupted = False
    try:
        measure(options, Console(stderr=True), rows, failed)
    except KeyboardInterrupt:
        interrupted = True
    except BenchmarkError as e:
        failed["start"] = str(e)
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a table cut to 80 columns helps nobody who reads it in a file
    report.show(console, rows, failed)
    if options.json:
        said = {k: v for k, v in vars(options).items() if k != "json"}
        options.json.write_text(json.dumps(report.document(rows, failed, said), indent=1) + "\n")
    return 130 if interrupted else int(bool(failed) or any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
