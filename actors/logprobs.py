"""Log-probabilities and entropy of tokens under logits, in full precision and in little memory.

V is the vocabulary. The maths is in float32, or in float64 where the logits are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK = 1 << 22
"""Logits that are held in full precision at a time."""


def log_probs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [...] of tokens [...] under logits [..., V], over the whole vocabulary at a temperature.

    Backward needs the logits again, so do not change them in place. Beside them, and their gradient of the same type,
    forward and backward need only a few megabytes, however many tokens there are. Raises ValueError for a temperature
    that is not positive.
    """
    found: Tensor = _LogProbs.apply(logits.reshape(-1, logits.shape[-1]), token_ids.flatten(), _checked(temperature))
    return found.view(token_ids.shape)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The entropy [...] in nats of softmax(logits [..., V] / temperature). It is a measurement, without a gradient."""
    rows, temperature = logits.detach().reshape(-1, logits.shape[-1]), _checked(temperature)
    found = rows.new_empty(len(rows), dtype=precise(rows.dtype))
    for part in _chunks(rows):
        found[part] = torch.special.entr(_scaled(rows[part], temperature).softmax(-1)).sum(-1)
    return found.view(logits.shape[:-1])


def precise(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _LogProbs(torch.autograd.Function):
    """Keeps the logits as they are; what is in full precision lives a chunk at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
        found = logits.new_empty(len(logits), dtype=precise(logits.dtype))
        for part in _chunks(logits):
            found[part] = -cross_entropy(_scaled(logits[part], temperature), token_ids[part], reduction="none")
        ctx.save_for_backward(logits, token_ids)
        ctx.temperature = temperature
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, token_ids = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _chunks(logits):
            by_row = grads[0][part, None] / ctx.temperature
            shares = _scaled(logits[part], ctx.temperature).softmax(-1).mul_(-by_row)
            gradient[part] = shares.scatter_add_(-1, token_ids[part, None], by_row)
        return gradient, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(precise(logits.dtype))
    return logits if temperature == 1 else logits / temperature


def _chunks(rows: Tensor) -> Iterator[slice]:
    """Slices of rows [N, V] with about CHUNK values each."""
    step = max(1, CHUNK // max(1, rows.shape[-1]))
    return (slice(i, i + step) for i in range(0, len(rows), step))


def _checked(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"log-probabilities at a temperature of {temperature} are not defined; it must be above 0")
    return temperature
