"""Python values as frames: a pickle (protocol 5) and its buffers, which are not copied into it.

cloudpickle takes values that the plain pickle cannot handle, or would send by a name that the other side lacks.
Never use it for values from outside a run: loading a pickle runs code.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

import cloudpickle

from forgectl.messages.frames import LONG


def dumps(value: Any) -> list[Any]:
    """The frames of a value: a pickle, then its buffers of LONG bytes or more, which are the value's own memory.

    Raises TypeError or PicklingError.
    """
    buffers: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # its memory is not contiguous
            return True
        if raw.nbytes < LONG:
            return True
        buffers.append(raw)
        return False

    if not cloudpickle.list_registry_pickle_by_value():
        try:
            data = _plain(value, in_band)
            if b"__main__" not in data:
                return [data, *buffers]
        except Exception:  # of any type: the value's own code raises; cloudpickle decides
            pass
        buffers.clear()
    file = io.BytesIO()
    ByValue(file, protocol=5, buffer_callback=in_band).dump(value)
    return [file.getvalue(), *buffers]


def _plain(value: Any, in_band: Any) -> bytes:
    if not (tensors := _of_tensors()):
        return pickle.dumps(value, protocol=5, buffer_callback=in_band)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=in_band)
    pickler.dispatch_table = {**copyreg.dispatch_table, **tensors}
    pickler.dump(value)
    return file.getvalue()


def nested(value: Any) -> list[Any]:
    """The same frames in a form that may be a part of another value; the other end gives them to `loads`."""
    return as_part(dumps(value))


def as_part(frames: Sequence[Any]) -> list[Any]:
    """Frames in the form of `nested`."""
    first, *buffers = frames
    return [first, *map(pickle.PickleBuffer, buffers)]


def loads(frames: Sequence[Any]) -> Any:
    """The value of these frames. Raises whatever the value's own code raises."""
    return pickle.loads(frames[0], buffers=frames[1:])  # noqa: S301 (from a process of the same run)


def copied(frames: Sequence[Any]) -> list[Any]:
    """The same frames without the value's own memory, which may then change."""
    return [f if isinstance(f, bytes) else bytes(f) for f in frames]


def size(frames: Sequence[Any]) -> int:
    """Bytes of a message's frames."""
    return sum(len(f) if isinstance(f, bytes) else f.nbytes for f in frames)


# ---------------------------------------------------------------- tensors


_reducers: dict[type, Any] = {}


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes every value that `dumps` takes."""

    dispatch_table = ChainMap(_reducers, cloudpickle.Pickler.dispatch_table)

    def __init__(self, file: Any, protocol: int = 5, buffer_callback: Any = None) -> None:
        super().__init__(file, protocol, buffer_callback)
        _of_tensors()


def _of_tensors() -> dict[type, Any]:
    """The reducers for tensors, if torch is imported.

    torch's own copies their memory into the pickle, that of a whole storage for a view of it, and takes ten times as
    long for a small tensor.
    """
    if not _reducers and (tensor := getattr(sys.modules.get("torch"), "Tensor", None)) is not None:
        _reducers[tensor] = _reduce_tensor
    return _reducers


def _reduce_tensor(tensor: Any) -> Any:
    """Most tensors by far are plain ones in memory, and many are small: for these, what is called here is the cost."""
    try:
        if tensor.is_cpu and not tensor.requires_grad and not tensor.__dict__ and tensor.is_contiguous():
            memory = tensor.numpy()
            if memory.nbytes:
                return _tensor_of, (pickle.PickleBuffer(memory), tensor.dtype, tuple(tensor.shape), False)
    except (RuntimeError, TypeError):  # numpy is missing, or cannot express it
        pass
    return _reduce_any_tensor(tensor)


def _reduce_any_tensor(tensor: Any) -> Any:
    import torch

    plain = (
        tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not (tensor.requires_grad and not tensor.is_leaf)
        and not tensor.__dict__  # attributes set by the user
        and not tensor._backward_hooks
    )
    kind = tensor.device.type
    if plain and kind not in ("cpu", "meta"):
        return _tensor_on, (kind, tensor.detach().cpu(), tensor.requires_grad)
    if not (plain and kind == "cpu" and tensor.is_contiguous() and tensor.nbytes):
        return tensor.__reduce_ex__(5)
    try:
        memory = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError):  # without numpy, or of a type that has no view as bytes
        return tensor.__reduce_ex__(5)
    return _tensor_of, (pickle.PickleBuffer(memory), tensor.dtype, tuple(tensor.shape), tensor.requires_grad)


def _tensor_on(kind: str, tensor: Any, requires_grad: bool) -> Any:
    """A tensor that comes from an accelerator of that kind: on the receiver's current one, else in its memory."""
    import torch

    backend = getattr(torch, kind, None)
    there = backend is not None and backend.is_available()
    return (tensor.to(kind) if there else tensor).requires_grad_(requires_grad)


def _tensor_of(memory: Any, dtype: Any, shape: tuple[int, ...], requires_grad: bool) -> Any:
    import torch

    tensor = torch.frombuffer(memory, dtype=dtype)
    if len(shape) != 1:
        tensor = tensor.reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor
