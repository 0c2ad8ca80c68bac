"""The samples and the first spec that `forgectl init` writes run as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Forge

SAMPLES = Path(__file__).parents[2] / "sample_configs"


def test_hello(forge: Forge) -> None:
    result = forge.run("launch", SAMPLES / "hello.yaml")
    assert result.returncode == 0, result.stderr
    assert "rank 1 of 2: the sum is 3" in result.stdout


def test_two_hosts_in_rehearsal(forge: Forge) -> None:
    result = forge.run("launch", SAMPLES / "two_hosts.yaml")
    assert result.returncode == 0, result.stderr
    assert "hello/3@sim2 │ rank 3 of 4: the sum is 10" in result.stdout


@pytest.mark.timeout(300)
def test_text_learns(forge: Forge) -> None:
    """A few steps are enough to see the loss fall and a sample come from the checkpoint."""
    out = forge.folder / "checkpoints"
    program = f"{SAMPLES / 'text.py'} --steps 20 --context 32 --width 32 --layers 1 --out {out}"
    spec = forge.spec(f"scripts: {{text: {{run: {program}, procs: 2, preload: [torch, torch._dynamo]}}}}")
    result = forge.run("launch", spec, timeout=240)
    assert result.returncode == 0, result.stderr
    losses = [float(line.split("train ")[1].split()[0]) for line in result.stdout.splitlines() if "train " in line]
    assert len(losses) >= 2, result.stdout
    assert losses[-1] < losses[0]
    assert list(out.iterdir())


def test_counter_counts_in_each_of_its_processes(forge: Forge) -> None:
    run = forge.ok("launch", SAMPLES / "counter.yaml", "-d").strip()
    assert json.loads(forge.ok("call", "counter", "add", "2", "--json")) == [3, 3, 3, 3]
    assert json.loads(forge.ok("call", f"{run}/counter", "add", "--json", "--", "-4")) == [-1] * 4
    assert forge.mesh(run, "counter")["state"] == "ready"
    assert "counter/3@local │ INFO [Counter 3/4] 2 more makes 3" in forge.ok("logs", "counter", "--ranks", "3")
    forge.ok("shutdown", "--run", run)
    assert {m["mesh"]: m["state"] for m in forge.document(run)["meshes"]} == {"counter": "stopped", "driver": "stopped"}


def test_greeter_takes_turns(forge: Forge) -> None:
    run = forge.ok("launch", SAMPLES / "greeter.yaml", "-d").strip()
    said = [forge.ok("call", "greeter", "greet", name).strip() for name in ("Ada", "Bo", "Cy")]
    replicas = [line.rpartition(" ")[2] for line in said]
    assert sorted(replicas[:2]) == ["greeter.0", "greeter.1"]
    assert said == [
        f"Welcome Ada, guest 1 of {replicas[0]}",
        f"Welcome Bo, guest 1 of {replicas[1]}",
        f"Welcome Cy, guest 2 of {replicas[0]}",
    ]
    assert {m["kind"] for m in forge.document(run)["meshes"]} == {"service", "driver"}


def test_driver_ends_its_run_and_fails_nobody(forge: Forge) -> None:
    result = forge.run("launch", SAMPLES / "driver.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "400000 darts by 2 processes: pi is about 3.14" in result.stdout
    [document] = forge.status("-a")
    assert document["state"] == "succeeded"
    assert {m["mesh"]: (m["state"], m["reason"]) for m in document["meshes"]} == {
        "darts": ("stopped", "stopped by the end of its driver"),
        "driver": ("succeeded", None),
    }


@pytest.mark.timeout(300)
def test_story_learns_and_both_replicas_write(forge: Forge) -> None:
    """What `make demo` launches, with a smaller model and fewer steps."""
    small = "actors.trainer.args={batch: 4, context: 32, width: 32, layers: 1}"
    script = "driver.run=story.py --rounds 3 --steps 10 --length 30"
    result = forge.run("launch", SAMPLES / "story.yaml", "--set", small, "--set", script, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    losses = [float(x) for x in re.findall(r"round \d: train (\S+), held out", result.stdout)]
    assert len(losses) == 3, result.stdout
    assert losses == sorted(losses, reverse=True)
    assert len(re.findall(r"driver/0@local │   (?:The|A class)", result.stdout)) == 6


@pytest.mark.timeout(300)
def test_sft_trains_saves_and_goes_on(forge: Forge) -> None:
    """Two launches of a few steps: the second begins at the checkpoint of the first, at the next rows."""
    forge.ok("init", "--template", "sft", "mine")
    small = "actors.trainer.args.model={characters: 0123456789+=, hidden_size: 32, intermediate_size: 64, "
    small += "num_hidden_layers: 1, num_attention_heads: 2}"
    for steps in (2, 3):
        script = f"driver.run=sft.py --steps {steps} --every 2 --batch 16"
        generator = small.replace("trainer", "generator")
        settings = ("--set", small, "--set", generator, "--set", script)
        result = forge.run("launch", "mine/sft.yaml", *settings, timeout=240)
        assert result.returncode == 0, result.stdout + result.stderr
    run = forge.folder / "mine/sft-run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["loss"] < 3 for row in rows)
    assert (run / "checkpoints/latest").read_text() == "step-000003"
    assert (run / "model/model.safetensors").exists() and (run / "metrics.png").exists()


def test_init_gives_a_spec_that_runs(forge: Forge) -> None:
    forge.ok("init", "first")
    result = forge.run("launch", "first/forge.yaml")
    assert result.returncode == 0, result.stderr
    assert "step 50: loss" in result.stdout
