"""Trains a small character-level transformer with DDP on the documentation that comes with Python.

Start it with `forgectl launch text.yaml`, or with `torchrun --standalone --nproc-per-node 2 text.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from text_model import Training, Transformer, join


def train(training: Training, steps: int) -> None:
    """Train in place. Rank 0 prints the loss after the first step and after each tenth of the steps."""
    began = time.monotonic()
    while training.step < steps:
        count = 1 if training.step == 0 else min(max(1, steps // 10), steps - training.step)
        seen, unseen = training.advance(count, of=steps)
        if dist.get_rank() == 0:
            seconds = time.monotonic() - began
            print(f"step {training.step:4d}  train {seen:.3f}  held out {unseen:.3f}  {seconds:5.1f} s", flush=True)


def save(model: Transformer, path: Path) -> None:
    """Write the checkpoint under another name, then rename it, so that `path` is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(model.checkpoint(), partial)
    partial.replace(path)


def load(path: Path) -> Transformer:
    """The model that `save` wrote, on the CPU."""
    return Transformer.restored(torch.load(path, map_location="cpu", weights_only=True))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8, help="sequences per rank and step")
    parser.add_argument("--context", type=int, default=128, help="characters that the model sees at once")
    parser.add_argument("--width", type=int, default=128, help="channels, a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("checkpoints"), help="folder")
    return parser.parse_args()


def main() -> None:
    """Train on all ranks. Then rank 0 writes a checkpoint, reads it back, and prints a sample from it."""
    options = vars(parse())
    steps, out = options.pop("steps"), options.pop("out")
    training = Training(join(), **options)
    train(training, steps)
    if dist.get_rank() == 0:
        path = out / "text.pt"
        save(training.model, path)
        print(f"checkpoint: {path}\n{load(path).write('The ', 500)}", flush=True)
    del training  # before its process group: in the other order torch can hang in gloo's last threads
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
