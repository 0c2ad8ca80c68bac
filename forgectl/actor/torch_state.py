"""What torch keeps for each thread, such as grad mode: taken from one thread of a rank, and given to another.

To the user a rank is one program, though its endpoints run in several threads. Nothing here imports torch.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple

AUTOCAST = ("cuda", "cpu")
"""The types of devices whose autocast is carried."""


class TorchState(NamedTuple):
    """The settings of one thread. torch's default dtype and random generators belong to the whole process."""

    inference: bool
    grad: bool
    autocast: tuple[tuple[bool, Any], ...]  # (enabled, dtype), by AUTOCAST
    autocast_cache: bool
    threads: int
    default_device: Any  # None: the CPU, since none was set
    cuda_device: int | None  # None: CUDA is not in use


def take() -> TorchState | None:
    """The state of this thread; None if torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):  # the second: it is being imported
        return None
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    return TorchState(
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        tuple([(enabled(kind), dtype(kind)) for kind in AUTOCAST]),
        torch.is_autocast_cache_enabled(),
        torch.get_num_threads(),
        _default_device(torch) if torch.overrides.has_torch_function((None,)) else None,
        int(torch.cuda.current_device()) if torch.cuda.is_initialized() else None,
    )


def _default_device(torch: Any) -> Any:
    """Asking takes 10 µs; so ask only where there is a function mode, which a default device is one of."""
    device = torch.get_default_device()
    return None if device.type == "cpu" else device


def give(wanted: TorchState | None) -> None:
    """Give this thread the state of another."""
    now = take()
    if wanted is None or now is None or now == wanted:
        return
    torch: Any = sys.modules["torch"]
    if wanted.inference != now.inference:  # first, as it changes the grad mode, too
        _set_inference(torch, wanted.inference)
    torch.set_grad_enabled(wanted.grad)
    for kind, (enabled, dtype) in zip(AUTOCAST, wanted.autocast, strict=True):
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(wanted.autocast_cache)
    if wanted.threads != now.threads:
        torch.set_num_threads(wanted.threads)
    if wanted.default_device != now.default_device:
        torch.set_default_device(wanted.default_device)
    if wanted.cuda_device is not None:
        torch.cuda.set_device(wanted.cuda_device)


_own = threading.local()


def _set_inference(torch: Any, mode: bool) -> None:
    """Enter a mode and stay in it. torch has no setter, and the mode would end with the object that entered it."""
    if (before := getattr(_own, "entered", None)) is not None:
        before.__exit__(None, None, None)
        _own.entered = None
    if torch.is_inference_mode_enabled() != mode:
        _own.entered = torch.inference_mode(mode)
        _own.entered.__enter__()
