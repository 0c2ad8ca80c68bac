"""Joins the others over gloo, stamps after the first all_reduce, and goes on with all_reduces until it is ended."""

import time

import torch
import torch.distributed as dist
from stamp import folder_argument, stamp


def main() -> None:
    """One all_reduce after the other, ten a second."""
    dist.init_process_group("gloo")
    for step in range(10**9):
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == dist.get_world_size(), total
        if not step:
            stamp(folder_argument())
        time.sleep(0.1)


if __name__ == "__main__":
    main()
