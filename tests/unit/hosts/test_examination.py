"""What a host says of itself to `forgectl check`. NVML is a fake, as the tests run where no GPU is."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from forgectl.hosts import examination as module
from forgectl.hosts import packages
from forgectl.hosts.examination import examine
from forgectl.protocol.host_survey import Examination, Examine, GpuMemory
from forgectl.system.processes import boot_id
from forgectl.wire.codec import from_json, to_json
from tests.unit.hosts.test_gpus import FakeNvml, cards

GIB = 1 << 30


class Nvml(FakeNvml):
    """Tells memory and the driver's version too."""

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.86.15"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:
        return next(card for card in self.cards if card["uuid"] == uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=80 * GIB, used=handle.get("used", 0))


def asked(root: Path, nvml: FakeNvml | None = None, **request: Any) -> Examination:
    request = {"host": "h", "gpus": "auto", **request}
    locks = {"FORGECTL_GPU_LOCKS": str(root)}
    return examine(root, Examine(**request), environ=locks, nvml=lambda: nvml)


def test_a_host_tells_what_it_is(tmp_path: Path) -> None:
    before = time.time()
    found = asked(tmp_path / "root", workdir=str(tmp_path))
    assert before <= found.received <= found.answered <= time.time()
    assert (found.hostname, found.kernel, found.facts.machine) == (socket.gethostname(), os.uname().release, boot_id())
    assert (found.facts.cores, found.memory) == (len(os.sched_getaffinity(0)), psutil.virtual_memory().total)
    assert 0 < found.memory_available <= found.memory
    total = shutil.disk_usage(tmp_path).total
    assert [(d.path, d.there, d.total) for d in found.disks] == [
        (str(tmp_path / "root"), False, total),
        (str(tmp_path), True, total),
    ]
    assert found.shm is None or 0 <= found.shm.free <= found.shm.total
    assert found.limits["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert set(found.limits) == {"nofile", "nproc", "memlock", "core"}
    assert (found.facts.gpus, found.driver, found.gpu_memory) == ((), "", ())
    assert from_json(Examination, json.loads(json.dumps(to_json(found)))) == found


def test_gpus_come_with_their_memory_and_their_holders(tmp_path: Path) -> None:
    nvml = Nvml(*({**card, "used": i * GIB} for i, card in enumerate(cards(3))))
    found = asked(tmp_path, nvml, gpus=[0, 2])
    uuids = [nvml.cards[i]["uuid"] for i in (0, 2)]
    assert [g.uuid for g in found.facts.gpus] == uuids
    assert found.gpu_memory == (GpuMemory(uuids[0], 80 * GIB, 0), GpuMemory(uuids[1], 80 * GIB, 2 * GIB))
    assert (found.driver, found.facts.declared_gpus, nvml.open) == ("570.86.15", False, 0)


def test_gpus_that_are_not_there_are_told(tmp_path: Path) -> None:
    found = asked(tmp_path, Nvml(*cards(1)), gpus=[7])
    assert found.no_such_gpu and "no GPU 7" in found.no_such_gpu
    assert found.facts.gpus == ()


QUESTIONS = ("nvmlInit", "nvmlSystemGetDriverVersion", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo")


@pytest.mark.parametrize("broken", [*QUESTIONS, "nvmlShutdown"])
def test_what_nvml_cannot_tell_is_left_out(tmp_path: Path, broken: str) -> None:
    nvml = Nvml(*cards(2), broken={broken: RuntimeError("no")})
    found = asked(tmp_path, nvml)
    assert len(found.facts.gpus) == (0 if broken == "nvmlInit" else 2)
    assert len(found.gpu_memory) == (2 if broken == "nvmlShutdown" else 0)
    assert found.driver == ("570.86.15" if broken not in QUESTIONS[:2] else "")


def test_a_driver_that_this_python_cannot_ask_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n")
    monkeypatch.setattr(module, "DRIVER_MARKS", (str(told),))
    monkeypatch.setattr(module, "_DRIVER", told)
    assert asked(tmp_path).nvml  # this one has the binding
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = asked(tmp_path)
    assert (found.nvml, found.driver) == (False, "570.86.15")


def test_an_interpreter_tells_its_packages_and_imports_none(tmp_path: Path) -> None:
    found = asked(tmp_path, pythons=(sys.executable, "python3"))
    own = found.interpreters[""]
    assert own.executable == sys.executable
    assert own.version == ".".join(map(str, sys.version_info[:3]))
    assert own.packages["psutil"] == psutil.__version__
    assert found.interpreters[sys.executable] == own
    code = f"{Path(packages.__file__).read_text()}\nprint(sorted({{'torch', 'monarch', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, loaded = done.stdout.splitlines()
    assert (json.loads(said)["packages"], loaded) == (own.packages, "[]")


def test_another_interpreter_is_asked_in_its_own_process(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    python = str(bare / "bin" / "python")
    found = asked(tmp_path, python=python, pythons=(python,))
    own = found.interpreters[""]
    assert own == found.interpreters[python]
    assert (own.executable, own.error) == (python, None)
    assert set(own.packages.values()) == {None}


@pytest.mark.parametrize(
    ("python", "error"),
    [
        ("/no/such/python", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/bin/true", "is not a Python interpreter: its exit status is 0"),
    ],
)
def test_what_is_no_interpreter_says_why(tmp_path: Path, python: str, error: str) -> None:
    found = asked(tmp_path, pythons=(python,)).interpreters[python]
    assert (found.error, found.version, found.packages) == (error, "", {})


def test_an_interpreter_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PYTHON_SECONDS", 0.2)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    assert asked(tmp_path, pythons=(str(program),)).interpreters[str(program)].error == "does not answer within 0.2 s"


TORCH = "from typing import Optional\n__version__ = '{}'\ndebug = False\ncuda: Optional[str] = {}\nhip = None\n"


@pytest.mark.parametrize(
    ("version", "cuda", "said"),
    [
        ("2.13.0+cu130", "'13.0'", ("2.13.0+cu130", "13.0", "2.29.7")),  # the NCCL for its CUDA, not just any
        ("2.13.0+cu128", "'12.8'", ("2.13.0+cu128", "12.8", "2.27.3")),
        ("2.13.0+cu118", "'11.8'", ("2.13.0+cu118", "11.8", None)),
        ("2.13.0+cpu", "None", ("2.13.0+cpu", None, None)),
        ("2.13.0", "os.system('false')", ("2.13.0", None, None)),  # looked at, not run
    ],
)
def test_torch_is_read_not_run(tmp_path: Path, version: str, cuda: str, said: tuple[Any, ...]) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "torch" / "version.py").write_text(TORCH.format(version, cuda))
    for name, told in (("torch", "2.13.0"), ("nvidia_nccl_cu12", "2.27.3"), ("nvidia_nccl_cu13", "2.29.7")):
        info = tmp_path / f"{name}-{told}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {told}\n")
    code = Path(packages.__file__).read_text()
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-S", "-c", code]  # -S: without what happens to be installed
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    told_packages = json.loads(done.stdout)["packages"]
    assert (told_packages["torch"], told_packages["CUDA"], told_packages["NCCL"]) == said
