"""Checks on a machine with an NVIDIA GPU what cannot be checked without one: `make gpu`. Takes less than 9 minutes.

Each check is a function whose docstring says what holds. Without a GPU it says so and fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "sample_configs"
SPEC = """
scripts:
  rank: {{run: "{here}/rank.py {seconds}", procs: {procs}, with_gpus: true}}
"""
SHARED = (
    SPEC.rstrip()
    + """
  judge: {{run: "{here}/rank.py {seconds}", procs: {procs}, share_gpus_with: rank}}
"""
)
SLACK = 64 * 2**20
"""Bytes by which a GPU's used memory may differ for other reasons."""


class Machine:
    """The GPUs, as NVML sees them, and a forgectl with its own home."""

    def __init__(self, folder: Path) -> None:
        import pynvml

        self.folder = folder
        self._nvml = pynvml
        pynvml.nvmlInit()
        self.cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self.uuids = [pynvml.nvmlDeviceGetUUID(card) for card in self.cards]
        self.env = {**os.environ, "FORGECTL_HOME": str(folder / "home"), "NO_COLOR": "1"}

    def used(self) -> list[int]:
        """Bytes in use on each GPU."""
        return [int(self._nvml.nvmlDeviceGetMemoryInfo(card).used) for card in self.cards]

    def forgectl(self, *arguments: object, code: int = 0, timeout: float = 120) -> str:
        """What a command prints; AssertionError for another exit code. timeout: in seconds."""
        argv = [sys.executable, "-m", "forgectl", *map(str, arguments)]
        done = subprocess.run(
            argv, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert done.returncode == code, f"{argv[2:]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def spec(self, procs: int, seconds: float = 0, text: str = SPEC) -> Path:
        """A spec of so many ranks, which stay so long after their work."""
        path = self.folder / f"gpu-{procs}-{seconds:g}.yaml"
        path.write_text(text.format(here=HERE, procs=procs, seconds=seconds))
        return path

    def until_seen(self, count: int, mesh: str = "rank") -> None:
        """Return once so many ranks of a mesh have printed."""
        deadline = time.monotonic() + 60
        while len(self.seen(mesh)) < count:
            assert time.monotonic() < deadline, f"the ranks of {mesh} print nothing"
            time.sleep(0.1)

    def seen(self, mesh: str = "rank") -> list[dict[str, Any]]:
        """What the ranks of a mesh have printed."""
        lines = self.forgectl("logs", mesh, "--no-prefix").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def discovery(machine: Machine) -> None:
    """A plan has the GPUs that NVML has."""
    plan = json.loads(machine.forgectl("plan", machine.spec(len(machine.uuids)), "--json"))
    found = {gpu["uuid"] for gpus in plan["meshes"][0]["gpus"].values() for gpu in gpus}
    assert found == set(machine.uuids), (found, machine.uuids)


def scripts(machine: Machine) -> None:
    """Ranks that were forked from a server with torch use CUDA and NCCL, each on the mesh's GPUs alone."""
    count = len(machine.uuids)
    machine.forgectl("launch", machine.spec(count), "--timeout", "100")
    seen = machine.seen()
    assert len(seen) == count
    assert {s["count"] for s in seen} == {count}
    assert {s["sum"] for s in seen} == {count * (count + 1) / 2}
    assert all(s["finite"] for s in seen)
    assert {s["uuid"].removeprefix("GPU-") for s in seen} == {u.removeprefix("GPU-") for u in machine.uuids}


def leases(machine: Machine) -> None:
    """A GPU that a run holds is refused to another, which learns who holds it; afterwards it is free."""
    run = machine.forgectl("launch", machine.spec(len(machine.uuids), 100), "-d").split()[-1]
    refusal = machine.forgectl("launch", machine.spec(1), "-d", "--name", "other", code=75)
    assert run in refusal, refusal
    machine.forgectl("shutdown", "--run", run)
    machine.forgectl("launch", machine.spec(1), "--timeout", "100")


def sharing(machine: Machine) -> None:
    """A mesh that shares another one's GPUs computes on the same ones, which stay leased until both have ended."""
    count = len(machine.uuids)
    run = machine.forgectl("launch", machine.spec(count, 100, SHARED), "-d").split()[-1]
    machine.until_seen(count, "rank")
    machine.until_seen(count, "judge")
    ours, theirs = ([s["uuid"] for s in machine.seen(mesh)] for mesh in ("rank", "judge"))
    assert ours == theirs, (ours, theirs)
    machine.forgectl("shutdown", "rank")
    assert run in machine.forgectl("launch", machine.spec(1), "-d", "--name", "other", code=75)
    machine.forgectl("shutdown", "judge")
    machine.forgectl("launch", machine.spec(1), "--timeout", "100")


def memory(machine: Machine) -> None:
    """Once `shutdown` has returned, the memory of the run's GPUs is free."""
    before = machine.used()
    run = machine.forgectl("launch", machine.spec(len(machine.uuids), 100), "-d").split()[-1]
    machine.until_seen(len(machine.uuids))
    busy = machine.used()
    assert all(b > a + SLACK for a, b in zip(before, busy, strict=True)), (before, busy)
    machine.forgectl("shutdown", "--run", run)
    after = machine.used()
    assert all(c <= a + SLACK for a, c in zip(before, after, strict=True)), (before, after)


def tensors(machine: Machine) -> None:
    """CUDA tensors pass through calls both ways, also when the driver has used CUDA before it launched."""
    done = subprocess.run(
        [sys.executable, HERE / "drive.py"],
        cwd=machine.folder,
        env=machine.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"given": "cuda:0", "argument": "cuda:0", "equal": True}, found


def learning(machine: Machine) -> None:
    """The sample of GRPO learns on one GPU, which its trainer and its generator share."""
    for name in ("grpo.yaml", "grpo.py", "sums.py"):
        shutil.copy(SAMPLES / name, machine.folder)
    settings = (
        "actors.trainer.procs=1",
        "actors.trainer.with_gpus=true",
        "actors.buffer.args.dp_size=1",
        "actors.buffer.args.batch_size=256",
        "services.generator.num_replicas=1",
        "services.generator.share_gpus_with=trainer",
        "driver.run=grpo.py --steps 600 --until 0.7",
    )
    machine.forgectl("launch", "grpo.yaml", *(w for one in settings for w in ("--set", one)), timeout=300)
    rows = [json.loads(line) for line in (machine.folder / "grpo-run/metrics.jsonl").read_text().splitlines()]
    held_out = [row["held_out"] for row in rows if "held_out" in row]
    assert held_out[-1] >= 0.7, held_out


CHECKS: list[Callable[[Machine], None]] = [discovery, scripts, leases, sharing, memory, tensors, learning]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        try:
            machine = Machine(Path(folder))
        except Exception as e:
            print(f"no NVIDIA GPU can be used here, nothing was checked: {e}")
            return 1
        failed = 0
        for check in CHECKS:
            began = time.monotonic()
            try:
                check(machine)
            except Exception:
                failed += 1
                print(f"FAILED {check.__name__}: {check.__doc__}\n{traceback.format_exc()}", flush=True)
            else:
                print(f"ok     {check.__name__}: {check.__doc__} ({time.monotonic() - began:.1f} s)", flush=True)
        machine.forgectl("shutdown", "--all", "--force")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
