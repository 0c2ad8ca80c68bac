"""Runs sample_configs/grpo.yaml once a seed (`--repeat` seeds), and grpo_smollm.yaml: `python benchmarks/grpo.py …`.

From a launch to its end: what the policy can at first and at last, and how long that took. With `--json F.json` the
curves are written to F-curves.json and drawn in F.svg. Exit 1 where a limit was missed.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import models
from forge import Forge
from harness import Sections, run
from measure import BenchmarkError, Row

SAMPLES = Path(__file__).parent.parent / "sample_configs"
SEEDED = ("trainer.args.model", "data.args", "generator.args.model", "generator.args")
WITHIN, FROM, TO = 360.0, 0.35, 0.9
STEPS = 10
"""Rewards are means of so many steps: one step has a few dozen groups."""
SMOLLM_WITHIN, RISE, SMOLLM_STEPS = 1500.0, 0.3, 4

Metrics = list[dict[str, Any]]


def asynchronous(forge: Forge, options: Namespace) -> Iterator[Row]:
    """As the sample is: answers are sampled while the trainer learns, by weights that are at most 1 version old."""
    yield from _rows("asynchronous", forge, options)


def synchronous(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Each batch is sampled by the weights that it trains."""
    yield from _rows("synchronous", forge, options, "actors.buffer.args.max_policy_age=0")


def smollm(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A language model of 135 million weights learns to answer in one short sentence; one run."""
    folder, model = forge.folder(), models.smollm()
    sets = [f"actors.trainer.args.model={model}", f"services.generator.args.model={model}"]
    seconds, metrics = _launched(forge, folder, "grpo_smollm.yaml", "brevity.py", *sets)
    argv = forge.argv("logs", "driver", "--no-prefix")
    logs = subprocess.run(argv, env=forge.env, capture_output=True, text=True, check=True).stdout
    printed = [line for line in logs.splitlines() if "reward " in line or "?  " in line]
    before, *_, after = [float(line.split()[1]) for line in printed if line.startswith("reward ")]
    if options.json:
        _keep(options.json, "smollm", [metrics], answers=printed)
    first, last = _reward(metrics[:SMOLLM_STEPS]), _reward(metrics[-SMOLLM_STEPS:])
    yield Row("grpo", "smollm: from launch to end", "s", (seconds,), SMOLLM_WITHIN)
    yield Row("grpo", f"smollm: reward of the first {SMOLLM_STEPS} steps", "", (first,))
    yield Row("grpo", f"smollm: reward of the last {SMOLLM_STEPS} steps", "", (last,))
    yield Row("grpo", "smollm: rise of the reward", "", (last - first,), RISE, least=True)
    yield Row("grpo", "smollm: reward on questions held out, before", "", (before,))
    yield Row("grpo", "smollm: reward on questions held out, after", "", (after,))
    yield Row("grpo", "smollm: rise on questions held out", "", (after - before,), RISE, least=True)
    yield Row("grpo", "smollm: steps of GRPO", "", (float(len(metrics)),))


def _rows(mode: str, forge: Forge, options: Namespace, *sets: str) -> Iterator[Row]:
    runs = [_learnt(forge, seed, *sets) for seed in range(options.repeat)]
    if options.json:
        _keep(options.json, mode, [metrics for _, metrics in runs])

    def row(what: str, values: list[float], unit: str = "", limit: float | None = None, *, least: bool = False) -> Row:
        return Row("grpo", f"{mode}: {what}", unit, tuple(values), limit, least=least)

    held_out = [[m["held_out"] for m in metrics if "held_out" in m] for _, metrics in runs]
    bounded = mode == "asynchronous"
    yield row("from launch to end", [seconds for seconds, _ in runs], "s", WITHIN if bounded else None)
    yield row("highest reward at first", [max(_reward(m[:STEPS]) for _, m in runs)], "", FROM)
    yield row("lowest reward at last", [min(_reward(m[-STEPS:]) for _, m in runs)], "", TO, least=True)
    yield row("highest held-out accuracy at first", [max(h[0] for h in held_out)], "", FROM)
    yield row("lowest held-out accuracy at last", [min(h[-1] for h in held_out)], "", TO, least=True)
    yield row("steps of GRPO", [float(len(metrics)) for _, metrics in runs])
    yield row("highest policy age", [max(m["policy_age_max"] for _, metrics in runs for m in metrics)])


def _reward(metrics: Metrics) -> float:
    return fmean(m["reward"] for m in metrics)


def _learnt(forge: Forge, seed: int, *sets: str) -> tuple[float, Metrics]:
    """Seconds that a launch with this seed takes, and the metrics of its steps."""
    seeds = [f"actors.{key}.seed={seed}" for key in SEEDED if not key.startswith("generator")]
    seeds += [f"services.{key}.seed={seed}" for key in SEEDED if key.startswith("generator")]
    return _launched(forge, forge.folder(), "grpo.yaml", "sums.py", *seeds, *sets)


def _launched(forge: Forge, folder: Path, spec: str, task: str, *sets: str) -> tuple[float, Metrics]:
    """Seconds that the launch of a sample takes in a folder, and the metrics of its steps."""
    for name in (spec, task, "grpo.py"):
        shutil.copy(SAMPLES / name, folder)
    options = [word for one in sets for word in ("--set", one)]
    seconds = forge.seconds("launch", str(folder / spec), *options, timeout=1800)
    [path] = folder.glob("*-run/metrics.jsonl")
    lines = path.read_text().splitlines()
    if not lines:
        raise BenchmarkError(f"{spec} ended without a step of GRPO")
    return seconds, [json.loads(line) for line in lines]


# ------------------------------------------------------------------ curves


def _keep(document: Path, mode: str, runs: list[Metrics], **more: Any) -> None:
    """Add the curves of a mode to their file, with what there is besides, and draw all that it has."""
    path = document.with_name(f"{document.stem}-curves.json")
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[mode] = [_curve(metrics) | more for metrics in runs]
    path.write_text(json.dumps(kept) + "\n")
    draw(kept, document.with_suffix(".svg"))


def _curve(metrics: Metrics) -> dict[str, list[list[float]]]:
    """Name → pairs of seconds since the first step and a value."""
    began = metrics[0]["time"]
    size = max(1, min(STEPS, len(metrics) // 10))
    chunks = [metrics[i : i + size] for i in range(0, len(metrics), size)]
    return {
        "reward": [[round(chunk[-1]["time"] - began, 1), round(_reward(chunk), 4)] for chunk in chunks],
        "held_out": [[round(m["time"] - began, 1), round(m["held_out"], 4)] for m in metrics if "held_out" in m],
    }


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw a panel a mode and value, with a line a seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = {"reward": "reward of sampled answers", "held_out": "reward on prompts held out"}
    figure, axes = plt.subplots(len(curves), 2, figsize=(9, 3 * len(curves)), squeeze=False, sharex="row", sharey=True)
    for (row, mode), (column, name) in itertools.product(enumerate(curves), enumerate(names)):
        axis = axes[row][column]
        for seed, run_ in enumerate(curves[mode]):
            axis.plot(*zip(*run_[name], strict=True), label=f"seed {seed}", linewidth=1.2)
        axis.axhline(TO, color="grey", linewidth=0.6, linestyle="dotted")
        axis.set_title(f"{mode}: {names[name]}", fontsize=9)
        axis.set_ylim(0, 1)
        axis.set_xlabel("seconds of GRPO")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


SECTIONS: Sections = {"asynchronous": asynchronous, "synchronous": synchronous, "smollm": smollm}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Trains by GRPO without a GPU", [2]))
