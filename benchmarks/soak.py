"""Whether anything grows in a run that lives long: `python benchmarks/soak.py [--seconds 600] [--json FILE]`.

A script calls two actors without a pause, a mesh is restarted, commands look, other runs come, go and are pruned.
Meanwhile descriptors, threads and memory of each process of the run are counted, and the files beside its logs. The
medians of the second and of the last quarter of the time are compared; exit 1 where something has grown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report
from forge import Forge, new_forge
from measure import PROGRAMS, BenchmarkError, Row, memory_of
from rich.console import Console
from sides import OURS, side

CALLS = 2000
LIMITS = {"descriptors": 0.0, "threads": 0.0, "MiB": 2.0, "files": 0.0}
OTHER = {"run": ["stamp_and_stay.py"], "procs": 2, "preload": []}
Samples = dict[tuple[str, str], list[float]]
"""(Whose, what) → the values of its samples, oldest first."""


def look(pids: dict[str, int]) -> Iterator[tuple[str, str, float]]:
    """Whose, what and how much, of each process."""
    for who, pid in pids.items():
        proc = Path(f"/proc/{pid}")
        yield who, "descriptors", float(len(os.listdir(proc / "fd")))
        yield who, "threads", float(len(os.listdir(proc / "task")))
        yield who, "MiB", memory_of(pid)["rss"]


def files_of(forge: Forge, run: str) -> float:
    """Files of a run beside the logs of its ranks, of which each generation has its own."""
    places = (forge.home / "runs", forge.home / "sockets", Path(f"/dev/shm/forgectl-{os.getuid()}"))
    found = [path.relative_to(place) for place in places for path in place.rglob("*")]
    return float(sum(path.parts[0].startswith(run) and "logs" not in path.parts for path in found))


def own_processes(run: dict[str, Any], *meshes: str) -> dict[str, int]:
    """The processes of a run that stay as long as it lives; of its meshes only those that are named."""
    ranks = {f"{m['mesh']}/{r['rank']}": r["pid"] for m in run["meshes"] if m["mesh"] in meshes for r in m["ranks"]}
    server = int(Path(f"/proc/{next(iter(ranks.values()))}/stat").read_text().rpartition(")")[2].split()[1])
    pids = {"controller": run["controller"]["pid"], "agent": run["hosts"][0]["agent_pid"], "fork server": server}
    return {f"{run['name']}: {who}": pid for who, pid in {**pids, **ranks}.items()}


def work(forge: Forge, run: str, number: int) -> None:
    """What users do: commands that look, a mesh that is restarted, another run that comes, goes and is pruned."""
    for words in (("status", "-v", run), ("logs", run, "-n", "5"), ("events", run), ("why", run), ("stack", run)):
        forge.seconds(*words)
    forge.seconds("restart", f"{run}/asked")
    folder = forge.folder()
    other = {**OTHER, "run": ["stamp_and_stay.py", str(folder)]}
    forge.seconds("launch", str(forge.spec(folder, other)), "-d", "--name", f"other-{number}")
    forge.seconds("shutdown", "--run", f"other-{number}", "--force")
    forge.seconds("prune", "--keep", "3 runs")
    shutil.rmtree(folder)


def soak(forge: Forge, seconds: float) -> Samples:
    """Samples of a run that is called and of one that is restarted, for so long."""
    samples: Samples = defaultdict(list)
    folder = forge.folder()
    meshes = {name: {**OTHER, "run": ["stamp_and_stay.py", str(folder)]} for name in ("stay", "asked")}
    spec = folder / "spec.yaml"
    spec.write_text(json.dumps({"name": "long", "workdir": str(PROGRAMS), "scripts": meshes}))
    forge.seconds("launch", str(spec), "-d")
    long = forge.status("long")
    with side(forge, OURS) as caller:
        caller.ask("launch", 2)
        called = forge.status("one_side")
        pids = {**own_processes(long, "stay"), **own_processes(called, *(m["mesh"] for m in called["meshes"]))}
        pids["one_side: driver"] = caller.pid
        deadline = time.monotonic() + seconds
        for number in itertools.count():
            if time.monotonic() > deadline:
                return samples
            caller.ask("many", "call", CALLS)
            work(forge, long["run"], number)
            for who, what, value in look(pids):
                samples[who, what].append(value)
            for run in (long, called):
                samples[run["name"], "files"].append(files_of(forge, run["run"]))
    raise BenchmarkError("unreachable")


def growth(samples: Samples) -> Iterator[Row]:
    """The median of the last quarter beyond that of the second, of each."""
    for (who, what), values in samples.items():
        quarter = len(values) // 4
        if quarter == 0:
            raise BenchmarkError(f"only {len(values)} samples: soak for longer")
        grown = statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])
        yield Row("growth", f"{who}: {what}", "MiB" if what == "MiB" else "", (grown,), LIMITS[what])


def main() -> int:
    """Soak, print, write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    forge = new_forge()
    rows: list[Row] = []
    failed: dict[str, str] = {}
    try:
        samples = soak(forge, options.seconds)
        rows = list(growth(samples))
        [turns] = {len(values) for values in samples.values()}
        rows.append(Row("growth", f"turns of work in {options.seconds:.0f} s", "", (float(turns),)))
    except (BenchmarkError, OSError, ValueError, LookupError) as e:
        failed["soak"] = f"{type(e).__name__}: {e}"
    finally:
        if problems := forge.close():
            failed["cleanup"] = "\n".join(problems)
    report.show(Console(width=150), rows, failed)
    if options.json:
        document = report.document(rows, failed, {"how": f"{options.seconds:.0f} s of work"})
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(failed) or any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
