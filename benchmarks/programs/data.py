"""What the benchmarks of actors send: an array, or a tensor."""


def made(kind, size):
    """`size` bytes, each of which has been written to."""
    if kind == "torch":
        import torch

        return torch.ones(size, dtype=torch.uint8)
    import numpy

    return numpy.ones(size, dtype="uint8")
