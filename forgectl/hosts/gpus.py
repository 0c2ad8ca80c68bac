"""Which GPUs a host has for this run, and who has them now."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from forgectl.frozen import dataclass
from forgectl.hosts.gpu_holders import process_words
from forgectl.hosts.gpu_leases import holders, lock_dir
from forgectl.model.plan import Gpu
from forgectl.system.sizes import show_bytes

DRIVER_MARKS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")  # the last one: WSL
_SHOWN_PROCESSES = 3


@dataclass(frozen=True)
class FoundGpus:
    """The GPUs that `discover` found. `declared`: only the spec names them, NVML does not see them."""

    gpus: tuple[Gpu, ...]
    declared: bool = False


class NoSuchGpu(ValueError):
    """The spec names GPUs that do not exist; the message says which there are."""


@dataclass(frozen=True)
class _Device:
    """What a process can use: a whole GPU, or a MIG device of one."""

    uuid: str
    name: str
    handle: Any  # NVML's
    mig: bool = False


@dataclass(frozen=True)
class _Card:
    """A physical GPU with its index in PCI order, as nvidia-smi shows it. `speed` only compares cards."""

    index: int
    uuid: str
    name: str
    speed: int
    devices: tuple[_Device, ...]  # itself, or its MIG devices


def load_nvml(marks: Sequence[str] = DRIVER_MARKS) -> Any | None:
    """The module `pynvml`; None if it or the NVIDIA driver is absent. Without a driver it costs a few stat calls."""
    if not any(Path(mark).exists() for mark in marks):
        return None
    try:
        return importlib.import_module("pynvml")
    except Exception:  # a broken installation is as good as none
        return None


def discover(
    declared: str | int | Sequence[int],
    *,
    host: str,
    environ: Mapping[str, str],
    run: str | None = None,
    machine: str = "",
    directory: Path | None = None,
    nvml: Callable[[], Any | None] = load_nvml,
) -> FoundGpus:
    """The GPUs of this machine that a host of the spec may use, in the order in which ranks should get them.

    `declared` is the host's `gpus`: "auto", "none", a number, or indices in PCI order. A number or indices that NVML
    does not see become GPUs by declaration; `machine`, which all names of the machine share, or else `host`, is a part
    of their UUID. CUDA_VISIBLE_DEVICES in `environ` hides GPUs that NVML sees. Processes of `run` do not count as
    holders. `directory` has the locks, by default lock_dir(). `Gpu.visible` is an index only if every CUDA process
    counts in the same way, else a UUID.
    Raises NoSuchGpu, and UsageError for a lock folder that cannot be trusted; no failure of NVML raises.
    """
    if declared != "auto" and (declared == "none" or not declared):
        return FoundGpus(())
    with _session(nvml) as session:
        cards, complete = _cards(session) if session else ((), True)
        chosen = _choose(declared, cards, host, environ)
        if chosen is None:
            indices = range(declared) if isinstance(declared, int) else declared
            gpus = [Gpu(visible=str(i), uuid=f"declared:{machine or host}:{i}") for i in indices]
            foreign: dict[str, str | None] = {}
        else:
            index = {} if _counted_differently(cards, complete, environ) else {c.uuid: c.index for c in cards}
            gpus = [Gpu(visible=str(index.get(d.uuid, d.uuid)), uuid=d.uuid, name=d.name) for d in chosen]
            foreign = {d.uuid: _foreign(session, d, run) for d in chosen}
    if not gpus:
        return FoundGpus(())
    leased = holders([g.uuid for g in gpus], directory or lock_dir(environ))
    found = tuple(Gpu(g.visible, g.uuid, g.name, holder=leased.get(g.uuid) or foreign.get(g.uuid)) for g in gpus)
    return FoundGpus(found, declared=chosen is None)


def _choose(
    declared: str | int | Sequence[int], cards: Sequence[_Card], host: str, environ: Mapping[str, str]
) -> list[_Device] | None:
    """The devices that `declared` means; None if NVML sees too few, so that only the declaration counts."""
    visible = _visible(cards, environ)
    if declared == "auto":
        return visible
    there = [c.index for c in cards if any(d in visible for d in c.devices)]
    seen = f"NVML shows {_list(there) if there else 'none'}"
    if len(visible) < sum(len(c.devices) for c in cards):
        seen += f", as CUDA_VISIBLE_DEVICES is {environ['CUDA_VISIBLE_DEVICES']!r}"
    if isinstance(declared, str) or (declared < 0 if isinstance(declared, int) else min(declared) < 0):
        raise NoSuchGpu(f"{declared!r} for host {host} is not auto, none, a number or a list of indices")
    if isinstance(declared, int):
        if declared <= len(visible):
            return visible[:declared]
        if declared > sum(len(c.devices) for c in cards):
            return None
        raise NoSuchGpu(f"{declared} GPUs are declared for host {host}, but {seen}")
    if not cards:
        return None
    if absent := [i for i in declared if i not in there]:
        raise NoSuchGpu(f"host {host} has no GPU {_list(absent)}: {seen}")
    by_index = {c.index: c for c in cards}
    return [d for i in dict.fromkeys(declared) for d in by_index[i].devices if d in visible]


def _list(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))


def _visible(cards: Sequence[_Card], environ: Mapping[str, str]) -> list[_Device]:
    """The devices that CUDA_VISIBLE_DEVICES leaves, in its order.

    As in CUDA, the list ends at the first bad entry, and is empty if one device comes twice. An index means the card's
    first MIG device, if it has any.
    """
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [d for c in cards for d in c.devices]
    counted = _in_cuda_order(cards, environ)
    chosen: list[_Device] = []
    for entry in wanted.split(","):
        device = _named(entry.strip(), counted)
        if device is None:
            break
        if device in chosen:
            return []
        chosen.append(device)
    return chosen


def _named(entry: str, cards: Sequence[_Card]) -> _Device | None:
    """The device of one entry: an index (text after its digits is ignored) or the start of a UUID."""
    if number := re.match(r"\+?([0-9]{1,9})", entry):
        index = int(number[1])
        return next(iter(cards[index].devices), None) if index < len(cards) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    names = {c.uuid: c.devices[0] for c in cards if c.devices}
    names |= {d.uuid: d for c in cards for d in c.devices}
    matches = [d for uuid, d in names.items() if uuid.lower().startswith(entry.lower())]
    return matches[0] if len(matches) == 1 else None


def _in_cuda_order(cards: Sequence[_Card], environ: Mapping[str, str]) -> list[_Card]:
    """The cards in CUDA's order: by default the fastest first.

    CUDA does not document how it measures speed. Cores times clock is the best that NVML offers; it matters only if the
    cards are of different kinds.
    """
    if _by_bus(cards, environ):
        return list(cards)
    return sorted(cards, key=lambda c: -c.speed)


def _by_bus(cards: Sequence[_Card], environ: Mapping[str, str]) -> bool:
    return environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({c.name for c in cards}) < 2


def _counted_differently(cards: Sequence[_Card], complete: bool, environ: Mapping[str, str]) -> bool:
    """Whether an index may mean different cards to us and to a rank."""
    return not complete or not _by_bus(cards, environ) or any(d.mig for c in cards for d in c.devices)


class _Nvml:
    """NVML between init and shutdown; every question gets an answer, at least the default.

    Bindings differ in their functions, drivers in what they support, containers in what they allow; and a GPU may fall
    off the bus at any moment. None of that may stop an agent, so it catches any `Exception`.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def ask(self, question: str, *args: Any, default: Any = None) -> Any:
        try:
            answer = getattr(self._module, question)(*args)
        except Exception:
            return default
        return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


@contextmanager
def _session(load: Callable[[], Any | None]) -> Iterator[_Nvml | None]:
    module = load()
    nvml = _Nvml(module)
    if module is None or nvml.ask("nvmlInit", default="failed") == "failed":
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.ask("nvmlShutdown")


def _cards(nvml: _Nvml) -> tuple[tuple[_Card, ...], bool]:
    """All cards that can be leased, and whether there are no others."""
    count = nvml.ask("nvmlDeviceGetCount", default=0)
    cards = [card for i in range(count) if (card := _card(nvml, i)) is not None]
    return tuple(cards), len(cards) == count


def _card(nvml: _Nvml, index: int) -> _Card | None:
    handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
    uuid = nvml.ask("nvmlDeviceGetUUID", handle) if handle is not None else None
    if not uuid:
        return None  # we may not use it, or it is broken; and without a UUID it cannot be leased
    name = nvml.ask("nvmlDeviceGetName", handle, default="")
    sm_clock = 1  # NVML_CLOCK_SM
    speed = nvml.ask("nvmlDeviceGetNumGpuCores", handle, default=0)
    speed *= nvml.ask("nvmlDeviceGetMaxClockInfo", handle, sm_clock, default=1)
    mig, _ = nvml.ask("nvmlDeviceGetMigMode", handle, default=(0, 0))
    devices = _mig_devices(nvml, handle) if mig else (_Device(uuid, name, handle),)
    return _Card(index, uuid, name, speed, devices)


def _mig_devices(nvml: _Nvml, card: Any) -> tuple[_Device, ...]:
    found = []
    for i in range(nvml.ask("nvmlDeviceGetMaxMigDeviceCount", card, default=0)):  # the indices have gaps
        handle = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", card, i)
        uuid = nvml.ask("nvmlDeviceGetUUID", handle) if handle is not None else None
        if uuid:
            found.append(_Device(uuid, nvml.ask("nvmlDeviceGetName", handle, default=""), handle, mig=True))
    return tuple(found)


def _foreign(nvml: _Nvml | None, device: _Device, run: str | None) -> str | None:
    """The processes on a GPU that do not belong to `run`, in words, those with the most memory first."""
    if nvml is None:
        return None
    used: dict[int, int] = {}  # bytes by pid; a container may show several as pid 0
    for process in _processes(nvml, device):
        used[process.pid] = max(used.get(process.pid, 0), process.usedGpuMemory or 0)
    pids = sorted((pid for pid in used if not _is_of(pid, run)), key=lambda pid: -used[pid])
    if not pids:
        return None
    words = [_foreign_words(pid, used[pid]) for pid in pids[:_SHOWN_PROCESSES]]
    if more := len(pids) - len(words):
        words.append(f"{more} more")
    return " and ".join(words)


def _processes(nvml: _Nvml, device: _Device) -> list[Any]:
    found = nvml.ask("nvmlDeviceGetComputeRunningProcesses", device.handle)
    if found is None:  # a driver older than the binding
        found = nvml.ask("nvmlDeviceGetComputeRunningProcesses_v2", device.handle, default=[])
    # A GPU that drives a screen always has the desktop's processes: they do not make it taken.
    if device.mig or nvml.ask("nvmlDeviceGetDisplayActive", device.handle, default=0):
        return list(found)
    return [*found, *nvml.ask("nvmlDeviceGetGraphicsRunningProcesses", device.handle, default=[])]


def _is_of(pid: int, run: str | None) -> bool:
    if run is None:
        return False
    try:
        return psutil.Process(pid).environ().get("FORGE_RUN_ID") == run
    except (psutil.Error, OSError, ValueError):
        return False  # it is gone, or belongs to another user, so that we may not read its environment


def _foreign_words(pid: int, used: int) -> str:
    words = (process_words(pid) if pid > 0 else None) or "a process that this container cannot see"
    return f"{words}, {show_bytes(used)}" if used else words
