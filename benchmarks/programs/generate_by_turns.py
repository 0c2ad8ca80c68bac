"""Generation by turns: `generate_by_turns.py MODEL THREADS REPEAT COUNT…`; prints tokens/s by count and side as JSON.

MODEL is JSON. Both sides sample the same number of tokens for the same prompts, with as many threads. The requests of a
count are all there at the beginning. Prompts have 16 to 96 tokens, in equal steps, and responses 8 to 128, in equal
ratios: most answers are shorter than the longest. One request is of 64 and 64. Only tokens that were asked for count;
`generate` of transformers gives all rows of its batch as many as the longest.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch
import transformers

from actors.decode import DecodeLoop, Request
from actors.models import LoadedModel, load_model, save_model
from actors.types import SamplingParams

OURS, THEIRS = "the decode loop", "transformers' generate"
Work = list[tuple[list[int], int]]
"""Prompts, and how many tokens each is answered with."""


def work(count: int, vocabulary: int) -> Work:
    """The requests, in an order that has nothing to do with their lengths."""
    rng = random.Random(0)
    at = [i / max(1, count - 1) for i in range(count)]
    prompts = [64] if count == 1 else [round(16 + 80 * x) for x in at]
    responses = [64] if count == 1 else [round(8 * 16**x) for x in at]
    rng.shuffle(prompts)
    rng.shuffle(responses)
    return [([rng.randrange(vocabulary) for _ in range(p)], r) for p, r in zip(prompts, responses, strict=True)]


def ours(model: LoadedModel, requests: Work) -> int:
    """Sample them all; the tokens that came."""
    loop = DecodeLoop(model, max_batch=len(requests))
    for i, (prompt, length) in enumerate(requests):
        loop.add(Request(str(i), prompt, SamplingParams(max_tokens=length)))
    tokens = 0
    while not loop.idle:
        tokens += sum(len(completion.token_ids) for (completion,) in loop.step().values())
    return tokens


def theirs(model: Any, requests: Work) -> int:
    """Sample them in one padded batch; the tokens that were asked for."""
    longest = max(len(prompt) for prompt, _ in requests)
    padded = [[0] * (longest - len(prompt)) + prompt for prompt, _ in requests]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests]
    length = max(length for _, length in requests)
    sampled = model.generate(
        input_ids=torch.tensor(padded),
        attention_mask=torch.tensor(mask),
        max_new_tokens=length,
        do_sample=True,
        top_k=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert sampled.shape[1] == longest + length
    return sum(length for _, length in requests)


def main(given: Any, threads: int, repeat: int, counts: list[int]) -> dict[int, dict[str, list[float]]]:
    """Tokens per second."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(given, dict):
            save_model(*load_model(given), temporary)
        folder = temporary if isinstance(given, dict) else given
        model = load_model(folder, dtype="float32", device="cpu")
        other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.tokenizer.end_ids = frozenset()  # a response ends at its length
    rates: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for count in counts:
        requests = work(count, model.config.vocab_size)
        for turn in range(repeat + 1):
            for side in (OURS, THEIRS):
                began = time.perf_counter()
                tokens = ours(model, requests) if side == OURS else theirs(other, requests)
                if turn:  # the first is for warming up
                    rates[count][side].append(tokens / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _, given, *numbers = sys.argv
    threads, repeat, *counts = map(int, numbers)
    print(json.dumps(main(json.loads(given), threads, repeat, counts)))
