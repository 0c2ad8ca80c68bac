"""Measures GRPO beside TRL's GRPOTrainer: `python benchmarks/beside_trl.py …`, or `make bench-trl`.

Both train the same small Llama on the same prompts, in the same order, with the same reward, loss and hyperparameters:
programs/grpo_by_trl.py says which. TRL is installed from the package index, into an environment of its own in
~/.cache/forgectl-trl. `--n` is the number of steps, `--repeat` that of seeds. With `--json` the rewards are drawn into
an SVG beside that file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forge import Forge
from harness import Sections, run
from measure import PROGRAMS, BenchmarkError, Row

sys.path.append(str(PROGRAMS))  # the last, so that its modules hide none
from grpo_by_trl import Job, Record

VERSION, TORCH = "1.16.0", "2.13.0"
TRL, IN_TURN, AT_ONCE = f"TRL {VERSION}", "actors, synchronous", "actors, asynchronous"
MILLIONTHS = "millionths"
AGES = {IN_TURN: 0, AT_ONCE: 2}
LEAST = 1.5
SAME = 100.0
"""Millionths by which the losses of the first step may differ."""
NOISE = 2.0
"""Standard errors by which equal means may differ."""
LARGEST, WARM_UP = 99, 300
Curves = Mapping[str, Sequence[Record]]
"""The runs of each side, one for each seed."""


def loss(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Four steps on the same completions: at the first all ratios are 1; later ones clip a seventh of the tokens."""
    del options
    for kind, mask_truncated in (("dapo", True), ("grpo", False), ("dr_grpo", False)):
        job = _job(forge, steps=4, loss=kind, mask_truncated=mask_truncated)
        ours = _by_forgectl(forge, "complete", job)
        theirs = _by_trl(forge, dataclasses.replace(job, completions=ours.pop("completions")))
        for what, a, b in (
            ("loss", ours["losses"], theirs.losses),
            ("norm of the gradients", ours["norms"], theirs.norms),
        ):
            differences = tuple(1e6 * abs(x - y) for x, y in zip(a, b, strict=True))
            limit = SAME if what == "loss" else None
            because = "issue 13" if limit else ""
            yield Row("loss", f"{kind}: difference of the {what}, step 1", MILLIONTHS, differences[:1], limit, because)
            yield Row("loss", f"{kind}: the same of steps 2 to 4", MILLIONTHS, differences[1:])
        yield Row("loss", f"{kind}: the loss itself, step 1", MILLIONTHS, (1e6 * abs(theirs.losses[0]),))


def training(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Whole runs by turns: their speed, and how the reward rises."""
    threads = {n: _rate(_by_trl(forge, _job(forge, steps=20, threads=n))) for n in sorted({1, _processors()})}
    for count, rate in threads.items():
        yield Row("speed", f"{TRL}: 20 steps with {count} thread(s)", "completions/s", (rate,))
    best = max(threads, key=lambda n: threads[n])
    runs: dict[str, list[Record]] = {TRL: [], **{side: [] for side in AGES}}
    for seed in range(options.repeat):
        job = _job(forge, steps=options.n[0], seed=seed, threads=best)
        runs[TRL].append(_by_trl(forge, job))
        for side, age in AGES.items():
            found = _by_forgectl(forge, "train", dataclasses.replace(job, max_policy_age=age))
            runs[side].append(Record(**found))
    yield from _speed(runs)
    yield from _rewards(runs)
    if options.json:
        draw(runs, options.json.with_suffix(".svg"))


SECTIONS: Sections = {"loss": loss, "training": training}


def _speed(runs: Curves) -> Iterator[Row]:
    rates = {side: tuple(map(_rate, records)) for side, records in runs.items()}
    for side, values in rates.items():
        yield Row("speed", side, "completions/s", values)
    for side in AGES:
        ratios = tuple(ours / theirs for ours, theirs in zip(rates[side], rates[TRL], strict=True))
        yield Row("speed", f"{side}, beside {TRL}", "×", ratios, LEAST, "issue 13", least=True)


def _rewards(runs: Curves) -> Iterator[Row]:
    """The mean over the last third of the steps, of each seed; and by how many standard errors the sides differ."""
    last = {side: tuple(_last_third(record.rewards) for record in records) for side, records in runs.items()}
    for side, records in runs.items():
        means = tuple(map(statistics.fmean, zip(*(record.rewards for record in records), strict=True)))
        yield Row("reward", f"{side}: of each step, mean over the seeds", "", means)
        yield Row("reward", f"{side}: of the last third of the steps, by seed", "", last[side])
    for side in AGES:
        if len(last[side]) > 1:
            error = math.sqrt(sum(statistics.variance(last[s]) / len(last[s]) for s in (side, TRL)))
            off = abs(statistics.fmean(last[side]) - statistics.fmean(last[TRL]))
            what = f"{side}: difference of the last third to {TRL}"
            yield Row("reward", what, "standard errors", (off / error,), NOISE, "issue 13")


def draw(runs: Curves, path: Path) -> None:
    """The mean over the seeds, smoothed over 9 steps, within the least and the most of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, (side, records) in enumerate(runs.items()):
        smooth = [_smoothed(record.rewards) for record in records]
        by_step = list(zip(*smooth, strict=True))
        steps = range(1, len(by_step) + 1)
        axes.fill_between(steps, list(map(min, by_step)), list(map(max, by_step)), color=f"C{number}", alpha=0.15, lw=0)
        axes.plot(steps, list(map(statistics.fmean, by_step)), color=f"C{number}", label=side)
    axes.set(xlabel="step", ylabel="mean reward", title=f"GRPO on sums, {len(runs[TRL])} seeds each")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path)


def _smoothed(values: Sequence[float], width: int = 9) -> list[float]:
    around = width // 2
    return [statistics.fmean(values[max(0, i - around) : i + around + 1]) for i in range(len(values))]


def _last_third(values: Sequence[float]) -> float:
    return statistics.fmean(values[-max(1, len(values) // 3) :])


def _rate(record: Record) -> float:
    """Completions a second, without the first tenth of the steps."""
    counted = record.seconds[len(record.seconds) // 10 :]
    return Job.prompts * Job.group * len(counted) / sum(counted)


# ------------------------------------------------------------------ what both begin with, and the two sides


def _job(forge: Forge, **fields: Any) -> Job:
    """A job of a seed, which shuffles the prompts. The model is made when it is first needed."""
    model, data = forge.home / "model", forge.home / f"sums-{fields.get('seed', 0)}.jsonl"
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.Random(fields.get("seed", 0)).shuffle(pairs)
    rows = [{"prompt": f"{a:02d}+{b:02d}=", "answer": f"{a + b:03d}"[::-1]} for a, b in pairs]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not model.exists():
        _by_forgectl(forge, "warm-up", Job(str(model), str(data), steps=WARM_UP))
    return Job(str(model), str(data), **fields)


def _by_forgectl(forge: Forge, what: str, job: Job) -> dict[str, Any]:
    return _ask([sys.executable, str(PROGRAMS / "grpo_by_forgectl.py"), what], job, forge.env)


def _by_trl(forge: Forge, job: Job) -> Record:
    offline = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HOME": str(forge.home / "hf")}
    program = [str(_environment_of_trl()), str(PROGRAMS / "grpo_by_trl.py")]
    return Record(**_ask(program, job, forge.env | offline))


def _ask(argv: list[str], job: Job, env: dict[str, str]) -> dict[str, Any]:
    """What a program prints last; BenchmarkError where it fails."""
    given = json.dumps(dataclasses.asdict(job))
    done = subprocess.run(argv, input=given, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment_of_trl() -> Path:
    """The interpreter that has TRL; it is installed where it is not there yet. torch is pinned to ours."""
    folder = Path("~/.cache/forgectl-trl").expanduser() / f"trl-{VERSION}-torch-{TORCH}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"installing TRL {VERSION} into {folder} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        wanted = [f"trl=={VERSION}", f"torch=={TORCH}"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
        ready.touch()
    return python


def _processors() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures GRPO beside TRL on this machine", [120]))
