"""What may help after a failure, by its kind and its texts. Pure."""

from __future__ import annotations

import re
import signal

from forgectl.model.status import FailureStatus
from forgectl.system.processes import signal_name

_TEXTS: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory",
        "the memory of its GPU ran out: a smaller batch or sequence, activation checkpointing, or more GPUs; where much"
        " is reserved but not allocated, PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; nvidia-smi on {host} shows"
        " who else uses the GPU",
    ),
    (
        r"DataLoader worker .* is killed by signal: Bus error|insufficient shared memory|/dev/shm.*No space left",
        "/dev/shm on {host} is full: fewer DataLoader workers, or a larger one (docker run --shm-size=…)",
    ),
    (
        r"DataLoader worker .* is killed by signal: Killed|DefaultCPUAllocator: can't allocate memory|\bMemoryError\b"
        r"|Cannot allocate memory",
        "the memory of {host} ran out: fewer processes or DataLoader workers there, or smaller batches",
    ),
    (
        r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b",
        "a disk of {host} is full: `df -h` there shows which; `forgectl prune` removes ended runs",
    ),
    (
        r"(?:ModuleNotFoundError: No module named|ImportError: No module named) '?(?P<module>[\w.]+)",
        "install {module} for the interpreter of the ranks on {host} (`forgectl plan` shows it), or set `workdir` to"
        " the folder that has it",
    ),
    (
        r"ImportError: |undefined symbol|GLIBC\w*_[\d.]+' not found",
        "an installed package does not fit the others: install it again for the same Python, torch and CUDA",
    ),
    (
        r"[Aa]ddress already in use|EADDRINUSE|Errno 98\b",
        "another process on {host} has the port: `ss -ltnp` there shows which; for the rendezvous take MASTER_PORT as"
        " it is set, for servers of your own a free port (0)",
    ),
    (
        r"Too many open files|Errno 24\b|received 0 items of ancdata",
        "raise the limit of open files (`ulimit -n`), or torch.multiprocessing.set_sharing_strategy('file_system')",
    ),
    (
        r"device-side assert|illegal memory access|CUDA error: (?:misaligned|invalid)",
        'CUDA reports such errors late: `env: {{CUDA_LAUNCH_BLOCKING: "1"}}` makes them appear where they happen',
    ),
    (
        r"No CUDA GPUs are available|CUDA driver version is insufficient|Found no NVIDIA driver",
        "its ranks see no GPU: `with_gpus: true` gives each one; `forgectl check` shows those of {host}",
    ),
    (
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclRemoteError",
        "`env: {{NCCL_DEBUG: INFO}}` shows what NCCL did before; `forgectl check` dials the addresses between hosts",
    ),
    (
        r"Watchdog caught collective operation timeout|Timed out waiting|DistStoreError|wait timeout after",
        "a collective waited for a rank that did not come: compare what all ranks did last (`forgectl logs -t`)",
    ),
    (
        r"Connection closed by peer|Connection reset by peer|Broken pipe",
        "a peer of it ended first: look at what the other ranks, and hosts, did just before",
    ),
    (
        r"PermissionError|Permission denied",
        "the user of the ranks may not do that on {host}: see the owner and mode of the path",
    ),
    (
        r"FileNotFoundError|No such file or directory",
        "relative paths start at `workdir`; of it only what is not ignored is copied to ssh hosts",
    ),
)
_SIGNALS = {
    "SIGKILL": "nobody says who sent SIGKILL; mostly memory ran out: `dmesg | grep -i oom` on {host} shows it",
    "SIGSEGV": "a crash in native code: its log has the stacks of all threads. Often an extension that was built for"
    " another torch or CUDA; `preload: []` shows whether forking matters",
    "SIGBUS": "mostly /dev/shm or a disk of {host} is full while a file is mapped: `df -h` there",
    "SIGILL": "native code was built for another processor than that of {host}",
    "SIGABRT": "the program, or a library such as NCCL's watchdog, aborted itself: its log says why",
    "SIGFPE": "a division by zero in native code: its log has the stacks of all threads",
    "SIGTERM": "something else than forgectl ended it: a scheduler, a limit of the machine, or a person",
    "SIGXCPU": "a limit of processor time (`ulimit -t`) ended it",
    "SIGXFSZ": "a limit of file size (`ulimit -f`) ended it",
}
HANG_HINT = (
    "`forgectl stack` shows where its ranks are now; if they work, a longer `hang: {{after: …}}`, or"
    " forgectl.heartbeat() in each step"
)
_MOST = 64 * 1024
"""Most characters that are searched."""


def hint_for(failure: FailureStatus) -> str | None:
    """What to try after a failure; None if nothing fits."""
    text, host = _template(failure), failure.host or "its host"
    return text.format(host="this machine" if host == "local" else host) if text else None


def _template(failure: FailureStatus) -> str | None:
    if failure.kind == "host_lost":
        return "can {host} be reached (`ssh {host}`)? With `restart:` a mesh moves to other hosts of its run"
    if failure.kind == "hang":
        return HANG_HINT
    if failure.kind == "lease":
        return "the network, or {host}, was away for longer than `lease:`; a longer one waits longer"
    if failure.kind == "time_limit":
        return "a larger `time_limit`, or a script that goes on from its last checkpoint"
    if failure.kind == "out_of_memory" and failure.signal is not None:
        return (
            "the memory of {host} ran out: fewer processes or DataLoader workers there, smaller batches, or a host with"
            " more; `forgectl status -v` shows what each rank uses"
        )
    by_signal = None if failure.signal is None else _SIGNALS.get(signal_name(failure.signal))
    if by_signal and failure.signal != signal.SIGABRT:
        return by_signal
    own = "\n".join((failure.message, failure.traceback or ""))
    for searched in (own, "\n".join(failure.log_tail)) if failure.kind != "exception" else (own,):
        for pattern, template in _TEXTS:
            if match := re.search(pattern, searched[-_MOST:]):
                return template.replace("{module}", match.groupdict().get("module") or "")
    if by_signal:
        return by_signal
    if failure.exit_code in (126, 127):
        return "a shell exits so when a program is not there or may not be executed: see the end of its log"
    return None
