"""Training one model on several ranks: FSDP2, or whole copies whose gradients are added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from actors.world import World

Parallel = Literal["fsdp", "ddp"]
BUCKET_BYTES = 32 * 2**20


def check_same_weights(module: nn.Module, world: World, source: str) -> None:
    """Raise ValueError if ranks have begun with different weights, as from different folders of one name."""
    sums = world.gather(float(sum(p.detach().double().sum() for p in module.parameters())))
    if wrong := [rank for rank, value in enumerate(sums) if value != sums[0]]:
        raise ValueError(f"ranks {wrong} have loaded other weights than rank 0 from {source}; are the folders equal?")


def shard(module: nn.Module, world: World, compute: torch.dtype) -> None:
    """Give each rank a part of every parameter (FSDP2). Layers are gathered one at a time, in the compute dtype.

    Gradients are added up over the ranks, not averaged: each rank computes its share of the step's loss.
    """
    device = next(module.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=next(module.parameters()).dtype)
    for part in (*_layers(module), module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _layers(module: nn.Module) -> Iterable[nn.Module]:
    """The layers of a language model: the longest list of modules in it."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=())


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 has divided a module."""
    return isinstance(module, FSDPModule)


def add_up_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace the gradients of whole copies by their sums over the ranks.

    DistributedDataParallel would average them, need as many backward passes on every rank, and wrap the module.
    """
    bucket: list[Tensor] = []
    sent: list[tuple[Tensor, list[Tensor], Any]] = []
    for parameter in parameters:
        if parameter.grad is None:  # this rank had no data
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (
            bucket[0].dtype != parameter.grad.dtype or sum(map(_bytes, (*bucket, parameter.grad))) > BUCKET_BYTES
        ):
            sent.append(_send(bucket))
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        sent.append(_send(bucket))
    for flat, gradients, work in sent:
        work.wait()
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(total.view_as(gradient))


def _send(gradients: list[Tensor]) -> tuple[Tensor, list[Tensor], Any]:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    return flat, gradients, dist.all_reduce(flat, async_op=True)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scale the gradients to a norm of at most `max_norm`, over all shards; returns the norm before.

    Raises FloatingPointError where it is not finite: a step would spoil the weights.
    """
    parameters = list(parameters)
    limit = math.inf if max_norm is None else max_norm
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the norm of the gradients is {value}; weights are unchanged. Look for extreme advantages or "
            "log-probabilities in the batch, or lower the learning rate"
        )
    return value


@torch.no_grad()
def whole_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight, gathered one at a time; a tied one comes once. All ranks must iterate."""
    first = {name for name, _ in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - first
    for name, tensor in module.state_dict().items():
        if name not in tied:
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
