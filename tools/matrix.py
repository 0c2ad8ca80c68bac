"""Tries forgectl with the oldest versions that pyproject.toml allows and the newest there are: `make matrix`.

Each kind gets an environment of its own, into which pip resolves forgectl with the extra `actors`. Behind it stand the
packages of .venv, for torch and pytest. Three things are looked at: tests of commands, the time that commands take to
start, and whether today's training libraries resolve to the same versions with forgectl as without. The results are in
tools/matrix.json, and a table of docs/limits.md is made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
RESULTS = TOP / "tools/matrix.json"
PAGE = TOP / "docs/limits.md"
TABLE = re.compile(r"(?<=<!-- tried versions -->\n).*?(?=<!-- end of tried versions -->)", re.DOTALL)
TORCH = "torch==2.13.0"
BESIDE = ("accelerate", "lightning", "transformers", "datasets", "huggingface-hub")
EXTRAS = "actors"
TESTS = (
    ("tests/unit/cli", "tests/unit/spec/test_spec.py", "tests/unit/test_pages.py", "tests/unit/test_frozen.py"),
    ("tests/process/test_run.py", "tests/process/test_status.py", "tests/process/test_failures.py"),
    ("tests/process/test_names.py", "tests/process/test_launch.py", "tests/process/test_prune.py"),
    ("tests/process/test_actor_specs.py", "tests/process/test_life.py", "tests/process/test_gpu_leases.py"),
)
"""In groups, so that each ends in minutes."""
STARTS = {"forgectl --help": ["--help"], "forgectl status": ["status"]}
Versions = dict[str, str]
"""Package, as pip spells it → version."""


def declared(pyproject: str) -> Versions:
    """The lower bounds of what users install: of forgectl itself and its extra `actors`."""
    own = pyproject.partition("\ndependencies = [")[2].partition("\n]")[0]
    extra = pyproject.partition(f"\n{EXTRAS} = [")[2].partition("]")[0]
    return dict(re.findall(r'"([\w.-]+)>=([\w.]+)"', own + extra))


def table(results: Mapping[str, Any]) -> str:
    """The table of docs/limits.md."""
    lowest, newest = (results["environments"][kind]["versions"] for kind in ("lowest", "newest"))
    rows = [f"| {name} | {lowest[name]} | {newest[name]} |" for name in lowest]
    beside = ", ".join(f"{name} {version}" for name, version in results["beside"].items())
    return "\n".join(["| package | lowest | newest |", "|---|---|---|", *rows, "", f"It resolves beside {beside}.", ""])


def environment(kind: str, folder: Path) -> dict[str, Any]:
    """Make an environment; its interpreter and the versions of what forgectl declares."""
    python = folder / kind / "bin/python"
    run([sys.executable, "-m", "venv", folder / kind])
    bounds = declared((TOP / "pyproject.toml").read_text())
    pins = [f"{name}=={version}" for name, version in bounds.items()] if kind == "lowest" else []
    run([python, "-m", "pip", "install", "-q", "-e", f"{TOP}[{EXTRAS}]", *pins])
    run([python, "-m", "pip", "check"])
    run([python, "-c", "import forgectl.cli, forgectl.actor.forge_actor"])  # nothing but what is declared is needed
    found = json.loads(run([python, "-m", "pip", "list", "--format", "json"]))
    listed = {package["name"].lower(): package["version"] for package in found}
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(site, "behind.pth").write_text(sysconfig.get_path("purelib"))
    return {"python": python, "versions": {name: listed[name.lower()] for name in bounds}}


def tests(python: Path) -> int:
    """How many tests pass; raises SystemExit if one fails."""
    passed = 0
    for group in TESTS:
        said = run([python, "-m", "pytest", "-q", "-n", "2", *group], cwd=TOP)
        passed += int(re.findall(r"(\d+) passed", said)[-1])
    return passed


def starts(pythons: Mapping[str, Path], times: int) -> dict[str, dict[str, float]]:
    """Kind → command → median milliseconds from its start to its end. The kinds take turns."""
    taken: dict[str, dict[str, list[float]]] = {kind: {command: [] for command in STARTS} for kind in pythons}
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "FORGECTL_HOME": home}
        for _ in range(times + 1):
            for kind, python in pythons.items():
                for command, arguments in STARTS.items():
                    began = time.perf_counter()
                    run([python, "-m", "forgectl", *arguments], env=env)
                    taken[kind][command].append(1000 * (time.perf_counter() - began))
    return {
        kind: {command: round(statistics.median(values[1:]), 1) for command, values in of.items()}
        for kind, of in taken.items()
    }


def beside(python: Path) -> Versions:
    """The newest training libraries as pip resolves them; raises SystemExit if forgectl changes one of them."""
    alone, together = (resolved(python, [*BESIDE, TORCH, *ours]) for ours in ([], [f"{TOP}[{EXTRAS}]"]))
    if held := {name: (alone[name], together.get(name)) for name in alone if alone[name] != together.get(name)}:
        sys.exit(f"forgectl changes the versions of others: {held}")
    return {name: together[name] for name in BESIDE}


def resolved(python: Path, packages: Sequence[str]) -> Versions:
    """The versions that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        run([python, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", report, *packages])
        found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in found}


def run(argv: Sequence[object], **options: Any) -> str:
    """What a command prints; raises SystemExit if it fails."""
    words = [str(word) for word in argv]
    done: subprocess.CompletedProcess[str] = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--starts", type=int, default=20, metavar="N", help="how often each command is started")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forgectl-matrix-") as folder:
        made = {}
        for kind in ("lowest", "newest"):
            made[kind] = environment(kind, Path(folder))
            print(f"{kind}: {made[kind]['versions']}", flush=True)
        pythons = {kind: about.pop("python") for kind, about in made.items()}
        found = beside(pythons["newest"])
        print(f"beside: {found}", flush=True)
        for kind, milliseconds in starts({**pythons, "pinned": Path(sys.executable)}, options.starts).items():
            made.setdefault(kind, {})["milliseconds"] = milliseconds
            print(f"{kind}: {milliseconds}", flush=True)
        for kind, python in pythons.items():
            made[kind]["passed"] = tests(python)
            print(f"{kind}: {made[kind]['passed']} tests passed", flush=True)
    results = {"python": platform.python_version(), "environments": made, "beside": found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(TABLE.sub(lambda _: table(results), PAGE.read_text()))


if __name__ == "__main__":
    main()
