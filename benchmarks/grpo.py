"""Runs sample_configs/grpo.yaml, once a seed (`--repeat` seeds): `python benchmarks/grpo.py --json FILE`.

From a launch to its end: what the policy can at first and at last, and how long that took. With `--json F.json` the
curves are written to F-curves.json and drawn in F.svg. Exit 1 where a limit was missed.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from forge import Forge
from harness import Sections, run
from measure import BenchmarkError, Row

SAMPLES = Path(__file__).parent.parent / "sample_configs"
SEEDED = ("trainer.args.model", "data.args", "generator.args.model", "generator.args")
WITHIN, FROM, TO = 360.0, 0.35, 0.9
STEPS = 10
"""Rewards are means of so many steps: one step has a few dozen groups."""

Metrics = list[dict[str, Any]]


def asynchronous(forge: Forge, options: Namespace) -> Iterator[Row]:
    """As the sample is: answers are sampled while the trainer learns, by weights that are at most 1 version old."""
    yield from _rows("asynchronous", forge, options)


def synchronous(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Each batch is sampled by the weights that it trains."""
    yield from _rows("synchronous", forge, options, "actors.buffer.args.max_policy_age=0")


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
    """Seconds that a launch takes, and the metrics of its steps."""
    folder = forge.folder()
    for name in ("grpo.yaml", "grpo.py", "sums.py"):
        shutil.copy(SAMPLES / name, folder)
    seeds = [f"actors.{key}.seed={seed}" for key in SEEDED if not key.startswith("generator")]
    seeds += [f"services.{key}.seed={seed}" for key in SEEDED if key.startswith("generator")]
    spec = str(folder / "grpo.yaml")
    seconds = forge.seconds("launch", spec, *(word for one in (*seeds, *sets) for word in ("--set", one)), timeout=1200)
    lines = (folder / "grpo-run" / "metrics.jsonl").read_text().splitlines()
    if not lines:
        raise BenchmarkError(f"{spec} ended without a step of GRPO")
    return seconds, [json.loads(line) for line in lines]


# ------------------------------------------------------------------ curves


def _keep(document: Path, mode: str, runs: list[Metrics]) -> None:
    """Add the curves of a mode to their file, and draw all that it has."""
    path = document.with_name(f"{document.stem}-curves.json")
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[mode] = [_curve(metrics) for metrics in runs]
    path.write_text(json.dumps(kept) + "\n")
    draw(kept, document.with_suffix(".svg"))


def _curve(metrics: Metrics) -> dict[str, list[list[float]]]:
    """Name → pairs of seconds since the first step and a value."""
    began = metrics[0]["time"]
    chunks = [metrics[i : i + STEPS] for i in range(0, len(metrics), STEPS)]
    return {
        "reward": [[round(chunk[-1]["time"] - began, 1), round(_reward(chunk), 4)] for chunk in chunks],
        "held_out": [[round(m["time"] - began, 1), round(m["held_out"], 4)] for m in metrics if "held_out" in m],
    }


def draw(curves: dict[str, list[dict[str, list[list[float]]]]], path: Path) -> None:
    """Draw a panel a mode and value, with a line a seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = {"reward": "reward of sampled answers", "held_out": "right answers to problems held out"}
    figure, axes = plt.subplots(len(curves), 2, figsize=(9, 3 * len(curves)), squeeze=False, sharex=True, sharey=True)
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


SECTIONS: Sections = {"asynchronous": asynchronous, "synchronous": synchronous}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Trains by GRPO without a GPU", [2]))
