"""A small character-level transformer and its data-parallel training, for text.py and story.py.

In shapes, B is sequences per rank, T characters per sequence, C channels, and V the size of the alphabet.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass
from pydoc_data import topics
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

HEAD_WIDTH = 32


@dataclass(frozen=True)
class Shape:
    """What is needed to build the model again; stored with its weights."""

    alphabet: str
    context: int
    width: int
    layers: int

    def __post_init__(self) -> None:
        if self.width % HEAD_WIDTH:
            raise ValueError(f"width is {self.width}; it must be a multiple of {HEAD_WIDTH}")


class Block(nn.Module):
    """Causal attention, then an MLP, each added to its input: (B, T, C) to (B, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, T, HEAD_WIDTH)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Computes the logits of each next character: (B, T) int64 to (B, T, V)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.characters = nn.Embedding(len(shape.alphabet), shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        # A single letter means little: first combine each position with the three characters before it.
        self.spelling = nn.Conv1d(shape.width, shape.width, kernel_size=4)
        self.blocks = nn.Sequential(*(Block(shape.width) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.logits = nn.Linear(shape.width, len(shape.alphabet))
        nn.init.normal_(self.characters.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) to (B, T, V); T is at most the context."""
        x = self.characters(ids)
        spelled = self.spelling(F.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)
        x = x + spelled + self.positions.weight[: ids.shape[1]]
        return self.logits(self.norm(self.blocks(x)))

    @torch.inference_mode()
    def write(self, prompt: str, length: int, temperature: float = 0.6) -> str:
        """`prompt`, followed by `length` more characters, sampled one by one."""
        device = self.positions.weight.device
        ids = torch.tensor([[self.shape.alphabet.index(c) for c in prompt]], device=device)
        for _ in range(length):
            odds = (self(ids[:, -self.shape.context :])[:, -1] / temperature).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(odds, 1)], dim=1)
        return "".join(self.shape.alphabet[i] for i in ids[0].tolist())

    def checkpoint(self) -> dict[str, Any]:
        """What `restored` needs to build the model again; tensors are on the CPU."""
        weights = {name: weight.detach().cpu() for name, weight in self.state_dict().items()}
        return {"shape": asdict(self.shape), "weights": weights}

    @classmethod
    def restored(cls, checkpoint: dict[str, Any]) -> Transformer:
        """The model of a checkpoint, on the CPU, in evaluation mode."""
        model = cls(Shape(**checkpoint["shape"]))
        model.load_state_dict(checkpoint["weights"])
        return model.eval()


def documentation() -> str:
    """The language reference that `help()` shows: about half a million characters."""
    text = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    return re.sub(r"([ .=+-])\1{8,}", r"\1" * 8, text)  # tables are mostly lines and blanks: too easy


def batch(ids: Tensor, size: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`size` random windows of `ids` (N,), and the character after each of theirs: two tensors (size, context)."""
    starts = torch.randint(len(ids) - context, (size,), generator=generator).to(ids.device)
    windows = ids[starts[:, None] + torch.arange(context + 1, device=ids.device)]
    return windows[:, :-1], windows[:, 1:]


def nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy per character, in nats."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def over_ranks(value: Tensor) -> float:
    """The mean over all ranks of one number per rank."""
    total = value.detach().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


class Training:
    """One rank of a data-parallel training on `documentation()`. The process group must exist already."""

    def __init__(
        self,
        device: torch.device,
        *,
        batch: int = 8,
        context: int = 128,
        width: int = 128,
        layers: int = 2,
        lr: float = 5e-3,
        seed: int = 0,
    ) -> None:
        text = documentation()
        alphabet = "".join(sorted(set(text)))
        numbers = {c: i for i, c in enumerate(alphabet)}
        ids = torch.tensor([numbers[c] for c in text], device=device)
        self._learn, self._held_out = ids.tensor_split([len(ids) * 9 // 10])
        torch.manual_seed(seed)
        self.model = Transformer(Shape(alphabet, context, width, layers)).to(device)
        self._parallel = DistributedDataParallel(self.model)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.98), fused=True)
        self._batch, self._context, self._lr = batch, context, lr
        self._generator = torch.Generator().manual_seed(seed * dist.get_world_size() + dist.get_rank())
        self.step = 0
        """Number of finished steps."""

    def advance(self, steps: int, *, of: int) -> tuple[float, float]:
        """Train `steps` more of `of` steps; returns nats per character over them, and on the held-out tenth."""
        losses = [self._one_step(of) for _ in range(steps)]
        return over_ranks(torch.stack(losses).mean()), self._held_out_loss()

    def _one_step(self, of: int) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * warm_then_cosine(self.step, of)
        self._optimizer.zero_grad()
        loss = nats(self._parallel, *batch(self._learn, self._batch, self._context, self._generator))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Nats per character on held-out windows: the same windows every time, others on each rank."""
        generator = torch.Generator().manual_seed(dist.get_rank())
        return over_ranks(nats(self._parallel, *batch(self._held_out, 4 * self._batch, self._context, generator)))


def warm_then_cosine(step: int, steps: int) -> float:
    """The learning rate as a share of its maximum: rises in the first twentieth of the run, then falls to a tenth."""
    warm = max(1, steps // 20)
    done = (step - warm) / max(1, steps - warm)
    return min(1.0, (step + 1) / warm) if done < 0 else 0.55 + 0.45 * math.cos(math.pi * done)


def join() -> torch.device:
    """Join the process group: over NCCL if every rank of this host has its own GPU, else over gloo."""
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device
