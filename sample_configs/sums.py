"""Sums of two numbers, for grpo.yaml and sft.yaml: an endless supply of problems, those held out, and the reward."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import torch

from actors import CharacterTokenizer, Episode, SamplingParams, demonstration

CHARACTERS = "0123456789+="
TOKENIZER = CharacterTokenizer(CHARACTERS)
LARGEST = 49
HELD_OUT = 400
SAMPLED, BEST = SamplingParams(max_tokens=5), SamplingParams(max_tokens=5, temperature=0)


def problem(a: int, b: int) -> dict[str, str]:
    """A prompt and its answer, whose digits stand in reverse: so each can be found from those before it."""
    return {"prompt": f"{a:02d}+{b:02d}=", "answer": f"{a + b:03d}"[::-1]}


def all_pairs() -> list[tuple[int, int]]:
    """All pairs of numbers, in an order that is always the same; the first HELD_OUT are for evaluation alone."""
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.Random(0).shuffle(pairs)
    return pairs


def held_out() -> list[dict[str, str]]:
    """Problems that are never trained on."""
    return [problem(a, b) for a, b in all_pairs()[:HELD_OUT]]


def training(epoch: int = 0, seed: int = 0) -> Iterator[dict[str, str]]:
    """All other problems, in another order in each epoch and for each seed."""
    pairs = all_pairs()[HELD_OUT:]
    random.Random(f"{seed} {epoch}").shuffle(pairs)
    return (problem(a, b) for a, b in pairs)


def example(row: Mapping[str, str]) -> Episode:
    """A problem with its answer, to learn from by supervision."""
    answer = [*TOKENIZER.encode(row["answer"], start=False), *TOKENIZER.end_ids]
    return demonstration(torch.tensor(TOKENIZER.encode(row["prompt"])), torch.tensor(answer))


def correct(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """1 for the right answer, else 0."""
    return [float(given == right) for given, right in zip(completions, answer, strict=True)]
