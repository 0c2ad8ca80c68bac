"""Hangs on purpose, and what is said of them: `python benchmarks/hangs.py --hangs 100 --seed 1 --resume FILE`.

Each hang is a mesh of 2 to 16 ranks of which one hangs, or of two actors that wait for each other. What the report of
the hang must have is the right rank, and none besides, and its line. Where nobody can tell which rank is wrong, as of
two that differ, no rank may be accused, and the text must have the line of each. With --resume what was found is kept
in FILE, and another command goes on from there.
"""

from __future__ import annotations

import ast
import datetime
import functools
import json
import random
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge import Forge
from harness import run
from measure import PROGRAMS, BenchmarkError, Row, wait_for

PROGRAM = PROGRAMS / "hang.py"
KINDS = (
    *("skipped", "order", "shape", "subgroup", "loop", "gil", "loader", "stop", "lock", "two_locks", "read", "receive"),
    *("empty_queue", "left", "waits_back"),
)
AT_ONCE = 60
"""Most ranks that run at once."""
AFTER, START = 5, 25
"""Seconds without progress after which they hang."""
RIGHT, RECORDER_COST, RECORDER_MEBI, STACKS_SECONDS, LAUNCH_COST = 95, 1.01, 2.0, 2.0, 1.03


@dataclass(frozen=True)
class Hang:
    """One hang on purpose."""

    number: int
    kind: str
    ranks: int
    culprit: int
    steps: int

    @property
    def mesh(self) -> str:
        return f"h{self.number}"


@dataclass(frozen=True)
class Outcome:
    """What was said of a hang. `right`: rank and line; `wronged`: a rank was accused that is not to blame."""

    hang: Hang
    right: bool
    wronged: bool
    suspects: tuple[int, ...]
    said: str
    seconds: float  # from the hang to its report


def drawn(count: int, seed: int) -> list[Hang]:
    """So many hangs of all kinds, the same ones for the same seed."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        ranks = chance.choice((2, 3, 4, 6, 8, 12, 16))
        kind = KINDS[number % len(KINDS)]
        hang = Hang(number, kind, ranks, chance.randrange(ranks), chance.randint(1, 30))
        found.append(hang if kind != "waits_back" else Hang(number, kind, 1, 0, 0))
    return found


def batches(hangs: Sequence[Hang]) -> Iterator[list[Hang]]:
    """As many together as may run at once."""
    batch: list[Hang] = []
    for hang in hangs:
        if batch and sum(h.ranks for h in batch) + hang.ranks > AT_ONCE:
            yield batch
            batch = []
        batch.append(hang)
    if batch:
        yield batch


def injected(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Hangs, and whether the report of each has the right rank and line."""
    hangs = drawn(options.hangs, options.seed)
    found = _known(options.resume, options.seed)
    left = [hang for hang in hangs if hang.number not in found]
    for batch in batches(left):
        for outcome in _try(forge, batch):
            found[outcome.hang.number] = outcome
            _keep(options.resume, options.seed, outcome)
    outcomes = [found[hang.number] for hang in hangs]
    count, seed = len(outcomes), options.seed
    for outcome in outcomes:
        if not outcome.right:
            sys.stderr.write(f"not right: {outcome}\n")
    right = sum(o.right for o in outcomes) / count * 100
    yield Row("hangs", f"of {count} (seed {seed}): rank and line right", "%", (right,), RIGHT, least=True)
    yield Row("hangs", f"of {count}: a wrong rank accused", "", (sum(o.wronged for o in outcomes),), 0)
    for kind in KINDS:
        of_kind = [o for o in outcomes if o.hang.kind == kind]
        if of_kind:
            yield Row("hangs", f"{kind}: right, of {len(of_kind)}", "", (sum(o.right for o in of_kind),))
    yield Row("hangs", f"from the hang to its report, with `after: {AFTER}s`", "s", tuple(o.seconds for o in outcomes))


def _known(file: Path | None, seed: int) -> dict[int, Outcome]:
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    found = [json.loads(line) for line in lines]
    return {
        o["hang"]["number"]: Outcome(**{**o, "hang": Hang(**o["hang"]), "suspects": tuple(o["suspects"])})
        for of_seed, o in found
        if of_seed == seed
    }


def _keep(file: Path | None, seed: int, outcome: Outcome) -> None:
    if file is not None:
        with file.open("a") as out:
            out.write(json.dumps([seed, asdict(outcome)]) + "\n")


def _try(forge: Forge, batch: Sequence[Hang]) -> Iterator[Outcome]:
    """Launch hangs together, and read what is reported of each."""
    folder = forge.folder()
    spec: dict[str, Any] = {"name": folder.name, "workdir": str(PROGRAMS), "scripts": {}, "actors": {}}
    pairs = [hang for hang in batch if hang.kind == "waits_back"]
    for hang in batch:
        if hang.kind == "waits_back":
            for name in (hang.mesh, f"{hang.mesh}-peer"):
                spec["actors"][name] = {"class": "hang_actors:Waiter", "hang": {"after": AFTER, "start": AFTER}}
        else:
            words = [str(PROGRAM), hang.kind, hang.culprit, hang.steps, str(folder / hang.mesh)]
            policy = {"after": AFTER, **({"start": START} if hang.kind == "left" else {})}
            spec["scripts"][hang.mesh] = {"run": list(map(str, words)), "procs": hang.ranks, "hang": policy}
    if pairs:
        spec["driver"] = {"run": ["hang_actors.py", str(folder), *(hang.mesh for hang in pairs)]}
    (folder / "spec.yaml").write_text(json.dumps({name: part for name, part in spec.items() if part}))
    forge.seconds("launch", str(folder / "spec.yaml"), "-d")
    try:
        for hang in batch:
            wait_for((folder / hang.mesh).exists, f"{hang}", timeout=120)
        yield from _outcomes(forge, folder, batch)
    finally:
        forge.seconds("shutdown", folder.name, "--timeout", "0")


def _outcomes(forge: Forge, folder: Path, batch: Sequence[Hang]) -> Iterator[Outcome]:
    """What is said of each, as it is reported."""
    incidents = Path(forge.status(folder.name)["run_dir"]) / "incidents"
    left = {hang.mesh: hang for hang in batch}

    def reported() -> Iterator[Outcome]:
        for event in _events(forge, folder.name):
            hang = left.get(event.get("mesh", ""))
            seconds = _unix(event["time"]) - (folder / hang.mesh).stat().st_mtime if hang else 0.0
            if hang is not None and event["event"] == "mesh_hung" and seconds > 0:
                del left[hang.mesh]
                yield _outcome(hang, json.loads(next(incidents.glob(f"{event['seq']:06}-*")).read_text()), seconds)

    deadline = time.monotonic() + 120
    while left:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"no report of {', '.join(map(str, left.values()))}")
        yield from reported()


def _outcome(hang: Hang, incident: dict[str, Any], seconds: float) -> Outcome:
    suspects, said = tuple(incident["suspects"]), "\n".join(incident["verdict"])
    wronged = bool(set(suspects) - {hang.culprit}) or (hang.kind == "waits_back" and bool(suspects))
    unclear = hang.kind == "waits_back" or (hang.ranks == 2 and hang.kind in ("skipped", "order", "shape", "subgroup"))
    named = suspects == (hang.culprit,) or (unclear and not suspects)
    return Outcome(hang, named and _has_line(said, hang) and not wronged, wronged, suspects, said, seconds)


def _has_line(said: str, hang: Hang) -> bool:
    """Whether the text has a line of the function in which the rank hangs; of one that has ended or stopped: how."""
    if hang.kind == "left":
        return "ended with exit code 0" in said
    if hang.kind == "stop":
        return "SIGSTOP" in said
    program = PROGRAMS / "hang_actors.py" if hang.kind == "waits_back" else PROGRAM
    first, last = _functions(program)[hang.kind]
    return any(first <= int(n) <= last for n in re.findall(rf"{program.name}:(\d+)", said))


@functools.cache
def _functions(program: Path) -> dict[str, tuple[int, int]]:
    """Function → its first and its last line."""
    tree = ast.walk(ast.parse(program.read_text()))
    found = [node for node in tree if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {node.name: (node.lineno, node.end_lineno or node.lineno) for node in found}


def _events(forge: Forge, name: str) -> list[dict[str, Any]]:
    argv = forge.argv("events", name, "--json")
    done = subprocess.run(argv, env=forge.env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"forgectl events ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _unix(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# ---------------------------------------------------------------- what it costs


def recorder(forge: Forge, options: Namespace) -> Iterator[Row]:
    """What a step of 10 ms with eight collectives takes longer by torch's recorder and our watch, and its memory."""
    ratios, mebi = [], []
    for _ in range(options.repeat):
        with_it = _steps(forge, {}, {"after": 600})
        without = _steps(forge, {"TORCH_FR_BUFFER_SIZE": "0"}, {"do": "nothing"})
        ratios.append(with_it[0] / without[0])
        mebi.append(with_it[1] - without[1])
    yield Row("recorder", "a step with it / without it", "", tuple(ratios), RECORDER_COST)
    yield Row("recorder", "memory of a rank with it, beside one without", "MiB", tuple(mebi), RECORDER_MEBI)


def _steps(forge: Forge, env: dict[str, str], hang: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step, and MiB of a rank at the end."""
    folder = forge.folder()
    script = {"run": ["steps.py", str(folder)], "procs": 2, "env": env, "hang": hang}
    forge.seconds("launch", str(Forge.spec(folder, script)))
    seconds, mebi = json.loads((folder / "result").read_text())
    return seconds, mebi


def stacks(forge: Forge, options: Namespace) -> Iterator[Row]:
    """The stacks of 64 ranks, and the verdict."""
    with forge.running("stamp_and_stay.py", procs=64) as (name, _):
        taken = tuple(forge.seconds("stack", name, "--json") for _ in range(options.repeat))
        yield Row("stacks", "of 64 ranks: the whole command", "s", taken, STACKS_SECONDS)


def launch(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A launch of 8 ranks to their first all_reduce, watched and not, by turns."""
    ratios = []
    for _ in range(options.repeat):
        watched = _launch(forge, {"after": 600})
        ratios.append(watched / _launch(forge, {"do": "nothing"}))
    yield Row("launch", "8 ranks, watched / not watched", "", tuple(ratios), LAUNCH_COST)


def _launch(forge: Forge, hang: dict[str, Any]) -> float:
    folder = forge.folder()
    began = time.monotonic()
    forge.seconds("launch", str(Forge.spec(folder, {"run": ["meet.py", str(folder)], "procs": 8, "hang": hang})))
    return time.monotonic() - began


if __name__ == "__main__":
    sections = {"hangs": injected, "recorder": recorder, "stacks": stacks, "launch": launch}
    sys.exit(run(sections, "Hangs on purpose, and what is said of them", [8]))
