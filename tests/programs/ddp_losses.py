"""Trains a little model by DDP on data that the ranks share, and prints the mean loss of each step on rank 0."""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(7)
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.randn(8, size, 64, 16, generator=torch.Generator().manual_seed(11))
for step in range(8):
    inputs = data[step, rank]
    loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    total = loss.detach().clone()
    dist.all_reduce(total)
    if rank == 0:
        print(f"loss {step} {total.item() / size:.6f} of {os.environ['GROUP_WORLD_SIZE']}", flush=True)
dist.destroy_process_group()
