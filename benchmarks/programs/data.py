"""What the benchmarks of actors send: an array, or a tensor."""

from collections.abc import Sized


def made(kind: str, size: int) -> Sized:
    """`size` bytes, each of which has been written to."""
    data: Sized
    if kind == "torch":
        import torch

        data = torch.ones(size, dtype=torch.uint8)
    else:
        import numpy

        data = numpy.ones(size, dtype="uint8")
    return data
