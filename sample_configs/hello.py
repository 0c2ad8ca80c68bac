"""Prints torchrun's variables in this rank, and adds up 1 + … + WORLD_SIZE with the other ranks."""

import os

import torch
import torch.distributed as dist

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def main() -> None:
    """Print the variables, then the sum, which must be equal on all ranks."""
    print(" ".join(f"{name}={os.environ[name]}" for name in NAMES), flush=True)
    dist.init_process_group("gloo")
    mine = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(mine)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: the sum is {mine.item()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
