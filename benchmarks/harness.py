"""What the benchmarks share: a command line, sections that run one after the other, a table, a JSON file."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import report
from forge import Forge, new_forge
from measure import BenchmarkError, Row, python, seconds_of
from rich.console import Console

Section = Callable[[Forge, argparse.Namespace], Iterator[Row]]
Sections = Mapping[str, Section]


def run(sections: Sections, description: str, ranks: list[int], arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit code. `ranks` are the numbers of ranks where none are asked for."""
    options = _parse(sections, description, ranks, arguments)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    interrupted = False
    try:
        _measure(sections, options, Console(stderr=True), rows, failed)
    except KeyboardInterrupt:
        interrupted = True
    except BenchmarkError as e:
        failed["start"] = str(e)
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a table cut to 80 columns helps nobody who reads it in a file
    report.show(console, rows, failed)
    if options.json:
        said = {k: v for k, v in vars(options).items() if k not in ("json", "resume")}
        document = report.document(rows, failed, said)
        if set(options.only) < set(sections) and options.json.exists():
            document["rows"] = report.merged(json.loads(options.json.read_text())["rows"], document["rows"])
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 130 if interrupted else int(bool(failed) or any(row.ok is False for row in rows))


def _parse(sections: Sections, description: str, ranks: list[int], arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--n", type=int, nargs="+", default=ranks, help="ranks to launch")
    parser.add_argument("--repeat", type=int, default=3, help="samples of each value")
    parser.add_argument("--only", default=",".join(sections), help=f"sections, of {', '.join(sections)}")
    parser.add_argument("--flood-bytes", type=int, default=10**9, help="what a rank writes in the section flood")
    parser.add_argument("--calls", type=int, default=100_000, help="calls in the section memory of actors")
    parser.add_argument("--hangs", type=int, default=100, help="hangs in the section hangs of hangs.py")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn by chance there")
    parser.add_argument("--resume", type=Path, help="keep each hang's outcome in this file, and go on from it")
    parser.add_argument("--json", type=Path, help="write all samples to this file; with --only its other rows stay")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := [name for name in options.only if name not in sections]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(sections)}")
    if options.repeat < 1 or min(options.n) < 1:
        parser.error("--repeat and --n must be at least 1")
    return options


def _measure(
    sections: Sections, options: argparse.Namespace, console: Console, rows: list[Row], failed: dict[str, str]
) -> None:
    """Run the sections; one that fails does not stop the next."""
    forge = new_forge()
    try:
        seconds_of(python("import torch"))  # into the page cache, so that no side pays for the disk
        for name in options.only:
            console.print(f"measuring {name} …")
            try:
                for row in sections[name](forge, options):
                    rows.append(row)
                    console.print(f"  {row.what}: {report.quantity(row.value, row.unit)}", markup=False)
            except (BenchmarkError, subprocess.SubprocessError, OSError, LookupError, ValueError) as e:
                failed[name] = f"{type(e).__name__}: {e}"
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # a second Ctrl-C must not leave ranks behind
        if problems := forge.close():
            failed["cleanup"] = "\n".join(problems)
