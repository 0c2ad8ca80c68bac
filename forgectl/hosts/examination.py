"""Examines this host before anything is launched on it; changes nothing, and starts and imports nothing heavy."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from forgectl.hosts import packages
from forgectl.hosts.facts import gather
from forgectl.hosts.gpus import DRIVER_MARKS, load_nvml
from forgectl.model.plan import Gpu
from forgectl.protocol.host_survey import Examination, Examine, GpuMemory, Interpreter, Space
from forgectl.system import cgroups
from forgectl.wire.codec import CodecError, from_json

PYTHON_SECONDS = 20.0
SHM = Path("/dev/shm")
_LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "memlock": resource.RLIMIT_MEMLOCK,
    "core": resource.RLIMIT_CORE,
}
_DRIVER = Path("/proc/driver/nvidia/version")


def examine(
    root: Path,
    request: Examine,
    *,
    environ: Mapping[str, str] = os.environ,
    nvml: Callable[[], Any | None] = load_nvml,
    addresses: Sequence[str] = (),
    machine: str = "",
) -> Examination:
    """All that can be known about this host.

    `root` is forgectl's folder here; `addresses` are the host's likeliest ones; `machine` is for its declared GPUs, as
    in `discover`.
    """
    received = time.time()
    facts, no_such_gpu = gather(
        request.host,
        request.gpus,
        root=str(root),
        addresses=addresses,
        machine=machine,
        environ=environ,
        nvml=nvml,
    )
    memory = psutil.virtual_memory()
    driver, gpu_memory = _ask_nvml(nvml, facts.gpus)
    return Examination(
        received=received,
        hostname=socket.gethostname(),
        kernel=platform.release(),
        facts=facts,
        interpreters={"": _interpreter(request.python), **{name: _interpreter(name) for name in request.pythons}},
        memory=memory.total,
        memory_available=memory.available,
        disks=tuple(_space(Path(path)) for path in (str(root), request.workdir) if path),
        shm=_space(SHM) if SHM.is_dir() else None,
        limits={name: resource.getrlimit(which) for name, which in _LIMITS.items()},
        cgroup=_may_make_cgroups(),
        driver=driver or _driver(),
        nvml=not _is_blind(),
        gpu_memory=tuple(gpu_memory),
        no_such_gpu=no_such_gpu,
        answered=time.time(),
    )


def _interpreter(python: str) -> Interpreter:
    if python in ("", sys.executable):
        version = ".".join(map(str, sys.version_info[:3]))
        return Interpreter(sys.executable, version, packages.packages())
    text = Path(packages.__file__).read_text()
    try:
        done = subprocess.run(
            [python, "-c", text],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PYTHON_SECONDS,
            check=False,
        )
        return from_json(Interpreter, json.loads(done.stdout))
    except OSError as e:
        return Interpreter(error=e.strerror or str(e))
    except subprocess.TimeoutExpired:
        return Interpreter(error=f"does not answer within {PYTHON_SECONDS:g} s")
    except (ValueError, CodecError):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        status = f"is not a Python interpreter: its exit status is {done.returncode}"
        return Interpreter(error=lines[-1][:200] if lines else status)


def _space(path: Path) -> Space:
    """The file system that `path` is on, or would be on if it existed."""
    there = path
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        usage = shutil.disk_usage(there)
    except OSError:  # behind a folder that we may not enter, or a stale mount
        return Space(str(path), 0, 0, False)
    return Space(str(path), usage.total, usage.free, there == path)


def _may_make_cgroups() -> bool:
    own = cgroups.own()
    return own is not None and all(os.access(path, os.W_OK) for path in (own, own / "cgroup.procs"))


def _driver() -> str:
    """NVIDIA's version as the kernel has it; "" without its driver."""
    if not _DRIVER.exists():
        return ""
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER.read_text(errors="replace"))
    return match[0] if match else "?"


def _is_blind() -> bool:
    """Whether there is a driver that this Python cannot ask."""
    return any(Path(mark).exists() for mark in DRIVER_MARKS) and importlib.util.find_spec("pynvml") is None


def _ask_nvml(nvml: Callable[[], Any | None], gpus: Sequence[Gpu]) -> tuple[str, list[GpuMemory]]:
    """The driver's version, and the memory of these GPUs; without those that NVML cannot report."""
    module = nvml()
    driver, memory = "", []
    try:
        if module is None:
            return "", []
        module.nvmlInit()
    except Exception:  # bindings and drivers differ in what they raise
        return "", []
    try:
        version = module.nvmlSystemGetDriverVersion()
        driver = version.decode() if isinstance(version, bytes) else str(version)
        for gpu in gpus:
            info = module.nvmlDeviceGetMemoryInfo(module.nvmlDeviceGetHandleByUUID(gpu.uuid))
            memory.append(GpuMemory(gpu.uuid, int(info.total), int(info.used)))
    except Exception:
        return driver, memory
    finally:
        try:
            module.nvmlShutdown()
        except Exception:
            pass
    return driver, memory
