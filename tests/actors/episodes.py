"""Tiny models, and episodes of random tokens for them."""

from __future__ import annotations

from typing import Any

import torch

from actors.models import load_model
from actors.types import Episode

TINY = {
    "characters": "0123456789+=",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # far from uniform, so that mistakes show
    "seed": 3,
}
VOCABULARY = len(str(TINY["characters"])) + 1


def tiny(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """The model, in double precision unless said otherwise."""
    return load_model(TINY, dtype=dtype, device="cpu").module


def episode(number: int, prompt: int, response: int, **fields: Any) -> Episode:
    """One of random tokens, for lengths in tokens; the same for the same number."""
    random = torch.Generator().manual_seed(number)
    return Episode(
        **{
            "episode_id": f"e{number}",
            "group_id": f"g{number // 2}",
            "prompt_ids": torch.randint(VOCABULARY, (prompt,), generator=random),
            "token_ids": torch.randint(VOCABULARY, (response,), generator=random),
            "loss_mask": torch.rand(response, generator=random) < 0.8,
            "logprobs": -3 * torch.rand(response, generator=random),
            "ref_logprobs": -3 * torch.rand(response, generator=random),
            "reward": float(number % 3),
            "advantage": float(torch.randn((), generator=random)),
            "policy_version": 0,
            **fields,
        }
    )


def episodes(count: int = 8) -> list[Episode]:
    """Of unequal lengths."""
    return [episode(i, 1 + i % 4, 1 + (5 * i) % 7) for i in range(count)]
