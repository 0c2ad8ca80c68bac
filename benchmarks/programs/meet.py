"""Joins the others over gloo, adds up a number with them, stamps; with --stay it then waits for a signal."""

import signal
import sys

import torch
import torch.distributed as dist
from stamp import folder_argument, stamp


def main() -> None:
    """One all_reduce, checked."""
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == dist.get_world_size(), total
    stamp(folder_argument())
    if "--stay" in sys.argv:
        signal.pause()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
