"""What is advised after failures, by the texts that programs really print."""

from __future__ import annotations

import pytest

from forgectl.controller.hints import hint_for
from forgectl.model.status import FailureKind, FailureStatus

CUDA = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"
)


@pytest.mark.parametrize(
    ("message", "tail", "expected"),
    [
        (CUDA, "", "a smaller batch"),
        ("ModuleNotFoundError: No module named 'einops.layers'", "", "install einops.layers for the interpreter"),
        ("ImportError: /x.so: undefined symbol: _ZN2at", "", "does not fit the others"),
        ("OSError: [Errno 98] Address already in use", "", "`ss -ltnp`"),
        ("OSError: [Errno 28] No space left on device: 'ckpt.pt'", "", "`df -h`"),
        ("RuntimeError: DataLoader worker (pid 9) is killed by signal: Bus error. It is possible", "", "/dev/shm"),
        ("RuntimeError: DataLoader worker (pid 9) is killed by signal: Killed.", "", "the memory of gpu01 ran out"),
        ("OSError: [Errno 24] Too many open files", "", "ulimit -n"),
        ("RuntimeError: CUDA error: device-side assert triggered", "", 'CUDA_LAUNCH_BLOCKING: "1"'),
        ("RuntimeError: No CUDA GPUs are available", "", "with_gpus"),
        ("torch.distributed.DistBackendError: NCCL error in: ncclSystemError", "", "{NCCL_DEBUG: INFO}"),
        ("RuntimeError: [gloo] Connection closed by peer [127.0.0.1]", "", "a peer of it ended first"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'data.bin'", "", "`workdir`"),
        ("exited with code 1", "bash: x: Permission denied", "owner and mode"),
    ],
)
def test_texts(message: str, tail: str, expected: str) -> None:
    kind: FailureKind = "exit" if tail else "exception"
    hint = hint_for(FailureStatus(0, "gpu01", message, log_tail=(tail,), exit_code=1, kind=kind))
    assert hint is not None
    assert expected in hint


@pytest.mark.parametrize(
    ("signal", "expected"),
    [(9, "dmesg"), (11, "native code"), (7, "/dev/shm"), (4, "another processor"), (6, "aborted"), (15, "scheduler")],
)
def test_signals(signal: int, expected: str) -> None:
    hint = hint_for(FailureStatus(0, "local", "killed", log_tail=("Permission denied",), signal=signal, kind="signal"))
    assert hint is not None
    assert (expected if signal != 6 else "owner and mode") in hint
    assert "local" not in hint


@pytest.mark.parametrize(
    ("kind", "expected"), [("lease", "`lease:`"), ("host_lost", "ssh gpu01"), ("time_limit", "checkpoint")]
)
def test_kinds(kind: FailureKind, expected: str) -> None:
    assert expected in (hint_for(FailureStatus(0, "gpu01", "x", kind=kind)) or "")


def test_nothing_is_advised_where_nothing_fits() -> None:
    assert (
        hint_for(FailureStatus(0, "a", "ValueError: bad", traceback="ValueError: bad", exit_code=1, kind="exception"))
        is None
    )
    tail = ("ModuleNotFoundError: No module named 'optional'",)  # an exception says by itself what it was
    assert hint_for(FailureStatus(0, "a", "ValueError: bad", log_tail=tail, exit_code=1, kind="exception")) is None


def test_the_kernels_evidence_comes_first() -> None:
    assert "the memory of a ran out" in (hint_for(FailureStatus(0, "a", "x", signal=9, kind="out_of_memory")) or "")
