"""Trains a small character-level transformer with DDP on the documentation that every Python ships.

Start it by `forgectl launch text.yaml`, or by `torchrun --standalone --nproc-per-node 2 text.py`.
In shapes, B is sequences a rank, T characters a sequence, C channels and V the size of the alphabet.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

HEAD_WIDTH = 32


@dataclass(frozen=True)
class Shape:
    """All that is needed to build the model again; stored with its weights."""

    alphabet: str
    context: int
    width: int
    layers: int


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
    """Logits of each next character: (B, T) int64 to (B, T, V)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.characters = nn.Embedding(len(shape.alphabet), shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        # Letters mean little alone: each position first sees its last four characters as one.
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
        """`prompt` and `length` more characters, drawn one by one."""
        device = self.positions.weight.device
        ids = torch.tensor([[self.shape.alphabet.index(c) for c in prompt]], device=device)
        for _ in range(length):
            odds = (self(ids[:, -self.shape.context :])[:, -1] / temperature).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(odds, 1)], dim=1)
        return "".join(self.shape.alphabet[i] for i in ids[0].tolist())


def documentation() -> str:
    """The language reference that `help()` shows: about half a million characters."""
    text = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    return re.sub(r"([ .=+-])\1{8,}", r"\1" * 8, text)  # tables are mostly rules and blanks, easy and dull


def batch(ids: Tensor, size: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`size` random windows of `ids` (N,) and what follows each character in them: two of (size, context)."""
    starts = torch.randint(len(ids) - context, (size,), generator=generator).to(ids.device)
    windows = ids[starts[:, None] + torch.arange(context + 1, device=ids.device)]
    return windows[:, :-1], windows[:, 1:]


def nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy a character, in nats."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, ids: Tensor, options: argparse.Namespace) -> float:
    """Nats a character on the same windows every time, other ones in each rank, averaged over all ranks."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    loss = nats(model, *batch(ids, 4 * options.batch, options.context, generator))
    return over_ranks(loss)


def over_ranks(value: Tensor) -> float:
    """The mean of one number a rank."""
    total = value.detach().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Up to --lr in the first twentieth of the run, then along a cosine down to a tenth of it."""
    warm = max(1, options.steps // 20)
    done = (step - warm) / max(1, options.steps - warm)
    return options.lr * (min(1.0, (step + 1) / warm) if done < 0 else 0.55 + 0.45 * math.cos(math.pi * done))


def train(model: Transformer, ids: Tensor, options: argparse.Namespace) -> None:
    """Train in place on nine tenths of `ids` (N,); rank 0 prints the loss there and on the last tenth."""
    began = time.monotonic()
    learn, held_out = ids.tensor_split([len(ids) * 9 // 10])
    generator = torch.Generator().manual_seed(options.seed * dist.get_world_size() + dist.get_rank())
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), fused=True)
    losses: list[Tensor] = []
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        optimizer.zero_grad()
        loss = nats(parallel, *batch(learn, options.batch, options.context, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if step % max(1, options.steps // 10) == 0 or step == options.steps - 1:
            seen, unseen = over_ranks(torch.stack(losses).mean()), held_out_loss(model, held_out, options)
            losses = []
            if dist.get_rank() == 0:
                seconds = time.monotonic() - began
                print(f"step {step:4d}  train {seen:.3f}  held out {unseen:.3f}  {seconds:5.1f} s", flush=True)


def save(model: Transformer, path: Path) -> None:
    """Write the checkpoint beside its final name first, so that `path` is never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"shape": asdict(model.shape), "weights": model.state_dict()}, partial)
    partial.replace(path)


def load(path: Path) -> Transformer:
    """The model that `save` wrote, on the CPU."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = Transformer(Shape(**checkpoint["shape"]))
    model.load_state_dict(checkpoint["weights"])
    return model.eval()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8, help="sequences a rank and step")
    parser.add_argument("--context", type=int, default=128, help="characters that the model sees at once")
    parser.add_argument("--width", type=int, default=128, help=f"channels, a multiple of {HEAD_WIDTH}")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("checkpoints"), help="folder")
    options = parser.parse_args()
    if options.width % HEAD_WIDTH:
        parser.error(f"--width {options.width} is not a multiple of {HEAD_WIDTH}")
    return options


def join() -> torch.device:
    """Join the process group: over NCCL where every rank of this host has a GPU to itself, else over gloo."""
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def main() -> None:
    """Train on all ranks; rank 0 then writes a checkpoint and a sample from what it reads back."""
    options = parse()
    device = join()
    torch.manual_seed(options.seed)
    text = documentation()
    alphabet = "".join(sorted(set(text)))
    numbers = {c: i for i, c in enumerate(alphabet)}
    ids = torch.tensor([numbers[c] for c in text], device=device)
    model = Transformer(Shape(alphabet, options.context, options.width, options.layers)).to(device)
    train(model, ids, options)
    if dist.get_rank() == 0:
        path = options.out / "text.pt"
        save(model, path)
        print(f"checkpoint: {path}\n{load(path).write('The ', 500)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
