"""The sample of GRPO, made small: what it leaves, and what becomes of it when something fails or is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import load_model
from actors.checkpoint import Checkpoints
from tests.conftest import Forge, until

SAMPLES = Path(__file__).parents[2] / "sample_configs"
SMALL = ("actors.buffer.args.batch_size=16", "actors.buffer.args.drop_zero_variance=false")
MAX_AGE = 1  # as the sample has it
MODEL = "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2"

pytestmark = pytest.mark.timeout(300)


def words(forge: Forge, driver: str, *settings: str) -> list[str]:
    """The words of a launch of the sample with a tiny model; `driver` are the driver's options."""
    for name in ("grpo.py", "sums.py"):
        shutil.copy(SAMPLES / name, forge.folder)
    text = (SAMPLES / "grpo.yaml").read_text()
    wide = "hidden_size: 128, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4"
    assert wide in text and f"max_policy_age: {MAX_AGE}" in text
    forge.write("grpo.yaml", text.replace(wide, MODEL))
    sets = [f"driver.run=grpo.py {driver}", *settings]
    return ["launch", "grpo.yaml", *(word for setting in sets for word in ("--set", setting))]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def metrics(folder: Path) -> list[dict[str, Any]]:
    return json_lines(folder / "metrics.jsonl")


def saved_step(folder: Path) -> int:
    """That of the latest checkpoint; 0 before the first."""
    latest = folder / "checkpoints/latest"
    return int(latest.read_text().removeprefix("step-")) if latest.exists() else 0


def test_it_leaves_metrics_samples_a_plot_a_checkpoint_and_a_model(forge: Forge) -> None:
    options = "--warm-up 0 --steps 10 --until 2"
    done = forge.run(*words(forge, options, *SMALL), timeout=240)
    assert done.returncode == 0, done.stderr
    rows = metrics(forge.folder / "grpo-run")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert {"reward", "loss", "grad_norm", "policy_age_mean", "tokens_per_second"} <= rows[-1].keys()
    assert 0 <= rows[-1]["held_out"] <= 1
    samples = json_lines(forge.folder / "grpo-run/samples.jsonl")
    assert len({s["episode_id"] for s in samples}) == len(samples) > 0
    assert max(row["policy_age_max"] for row in rows) <= MAX_AGE
    for sample in samples:  # step 1 trains version 1
        assert 0 <= sample["step"] - sample["policy_version"] <= MAX_AGE
    assert (forge.folder / "grpo-run/metrics.png").read_bytes()[:4] == b"\x89PNG"
    assert load_model(str(forge.folder / "grpo-run/model")).config.hidden_size == 32
    again = forge.run(*words(forge, options.replace("10", "12"), *SMALL), timeout=240)
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in metrics(forge.folder / "grpo-run")] == list(range(1, 13)), (
        "it goes on where it ended"
    )


def test_equal_rewards_end_it_with_advice(forge: Forge) -> None:
    few = ("actors.buffer.args.batch_size=16", "actors.buffer.args.max_empty_batches=2")
    done = forge.run(*words(forge, "--warm-up 0", *few), timeout=240)
    assert done.returncode != 0
    assert "equal rewards" in done.stderr
    assert "make the tasks easier" in done.stderr


def test_it_goes_on_when_a_generator_and_a_trainer_rank_are_killed(forge: Forge) -> None:
    launch = forge.start(*words(forge, "--warm-up 0 --steps 60 --until 2", *SMALL))
    until(lambda: len(metrics(forge.folder / "grpo-run")) >= 2, "the first steps", 120)
    [run] = forge.runs()
    for mesh in ("generator.1", "trainer"):
        os.kill(forge.mesh(run, mesh)["ranks"][0]["pid"], signal.SIGKILL)
        forge.until_mesh(run, mesh, lambda m: m["restarts"] == 1 and m["state"] == "ready")
    out, err = launch.communicate(timeout=240)
    assert launch.returncode == 0, out + err
    rows = metrics(forge.folder / "grpo-run")
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 60
    assert max(row["policy_age_max"] for row in rows) <= MAX_AGE
    samples = json_lines(forge.folder / "grpo-run/samples.jsonl")
    assert len({s["episode_id"] for s in samples}) == len(samples) > 0, "an episode came twice"


SEVENS = """
from actors import SamplingParams

SAMPLED, BEST = SamplingParams(max_tokens=4), SamplingParams(max_tokens=4, temperature=0)

def held_out():
    return [{"prompt": f"{i:02d}+"} for i in range(8)]

def training(epoch=0, seed=0):
    return ({"prompt": f"{i:02d}="} for i in range(100))

def sevens(completions):
    ended = [0 < len(text) < 4 for text in completions]
    return [text.count("7") / len(text) if end else 0.0 for text, end in zip(completions, ended)]
"""


def test_the_reward_goes_on_rising_after_a_trainer_rank_is_killed(forge: Forge) -> None:
    """A task that a tiny model learns in dozens of steps: to answer with sevens, and to end."""
    forge.write("sevens.py", SEVENS)
    task = ("actors.rewards.args.functions=['sevens:sevens']", "actors.data.args.source=sevens:training")
    fast = ("actors.trainer.args.optimizer.lr=1.0e-2", "actors.buffer.args.batch_size=64")
    driver = "--task sevens --warm-up 0 --until 0.9 --evaluate 5 --save 5"
    launch = forge.start(*words(forge, driver, *SMALL[1:], *task, *fast))
    folder = forge.folder / "grpo-run"
    until(lambda: saved_step(folder) > 0 and metrics(folder)[-1]["reward"] > 0.3, "a checkpoint, and some reward", 120)
    [run] = forge.runs()
    rewards_before = [row["reward"] for row in metrics(folder)]
    os.kill(forge.mesh(run, "trainer")["ranks"][1]["pid"], signal.SIGKILL)
    out, err = launch.communicate(timeout=240)
    assert launch.returncode == 0, out + err
    assert "trainer: restart 1 of 3: rank 1 on local was killed by SIGKILL" in err
    assert rewards_before[0] < 0.3
    assert max(rewards_before) < 0.9
    rows = metrics(folder)
    assert rows[-1]["reward"] > 0.85
    assert max(row["policy_age_max"] for row in rows) <= MAX_AGE
    assert re.search(r"reward (0\.9\d|1\.00) on the prompts that are held out\n.*see ", out, re.DOTALL)


def test_a_malformed_row_ends_the_run_with_its_line(forge: Forge) -> None:
    rows = [json.dumps({"prompt": str(i)}) for i in range(2000)]
    rows[1016] = '{"prompt": '
    forge.write("rows.jsonl", "\n".join(rows))
    forge.write("read.py", "import forgectl\nfor _ in range(20): forgectl.get('data').batch.call_one(100).get()")
    spec = "actors: {data: {class: 'actors:DatasetActor', args: {source: rows.jsonl}}}\ndriver: {run: read.py}"
    done = forge.run("launch", forge.spec(spec))
    assert done.returncode == 1
    assert re.search(r"ValueError: .*rows\.jsonl, line 1,017: not JSON", done.stderr), done.stderr


def test_a_language_model_resumes_after_the_driver_was_killed(forge: Forge) -> None:
    """grpo_smollm.yaml with a tiny model in place of SmolLM2. Nothing is left in between."""
    for name in ("grpo_smollm.yaml", "grpo.py", "brevity.py"):
        shutil.copy(SAMPLES / name, forge.folder)
    small = json.dumps({"characters": string.ascii_letters + " .?", **yaml.safe_load(f"{{{MODEL}}}")})
    models = [f"{mesh}.args.model={small}" for mesh in ("actors.trainer", "services.generator")]

    def launch_words(steps: int) -> list[str]:
        driver = (
            f"grpo.py --task brevity --folder smollm-run --warm-up 0 --evaluate 2 --save 4 --show 1 --steps {steps}"
        )
        sets = [*models, "actors.buffer.args.drop_zero_variance=false", f"driver.run={driver}"]
        return ["launch", "grpo_smollm.yaml", *(word for one in sets for word in ("--set", one))]

    launch = forge.start(*launch_words(1000))
    folder = forge.folder / "smollm-run"
    until(lambda: len(metrics(folder)) > saved_step(folder) > 0, "steps after a checkpoint", 120)
    [run] = forge.runs()
    os.kill(forge.mesh(run, "driver")["ranks"][0]["pid"], signal.SIGKILL)
    out, err = launch.communicate(timeout=60)
    assert launch.returncode != 0
    assert "killed by SIGKILL" in err
    assert re.search(r"0\.00  What is an? \w+\?  '", out), out
    forge.until_ended(run)
    assert not list(Path("/dev/shm").glob(f"forgectl-*/{run}*"))
    before, used, saved = metrics(folder), Checkpoints(folder / "checkpoints").highest_version(), saved_step(folder)
    assert 0 < saved <= len(before)
    forge.ok(*launch_words(saved + 4), timeout=240)
    after, samples = metrics(folder), json_lines(folder / "samples.jsonl")
    assert after[:saved] == before[:saved], "what the checkpoint has is not done again"
    assert [row["step"] for row in after] == list(range(1, saved + 5))
    assert min(s["policy_version"] for s in samples if s["step"] > saved) > used, "no version is used twice"
    assert all(s["metadata"]["text"] for s in samples if len(s["token_ids"]) > 1)
