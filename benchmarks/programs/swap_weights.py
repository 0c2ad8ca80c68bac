"""New weights for a generator that samples: `swap_weights.py MODEL THREADS REPEAT`; prints seconds by what as JSON.

MODEL is JSON. load: what copying the weights into the model took. stall: how much longer than the median the longest
time between two tokens was, of those around the swap.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from actors import WeightStore
from actors.decode import DecodeLoop, Request
from actors.generator import TorchBackend
from actors.models import load_model
from actors.types import SamplingParams

REQUESTS, PROMPT, AROUND = 4, 16, 10
"""AROUND is a number of tokens before and after a swap."""


async def main(given: Any, repeat: int, store: WeightStore) -> dict[str, list[float]]:
    """Seconds, of each swap."""
    model = load_model(given)
    model.tokenizer.end_ids = frozenset()
    clock = Clock(model.module)
    backend = TorchBackend(DecodeLoop(model, max_batch=REQUESTS))
    weights = {name: tensor.detach().clone() for name, tensor in model.module.named_parameters()}
    endless = SamplingParams(max_tokens=10**6)
    requests = [backend.generate(Request(str(i), [1] * PROMPT, endless)) for i in range(REQUESTS)]
    sampling = [asyncio.ensure_future(request) for request in requests]
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeat + 1):
        store.publish(None, weights)
        await clock.wait(AROUND)
        first = len(clock.times)
        await clock.wait(AROUND)
        await backend.load(store.fetch(), drain=False)
        await clock.wait(AROUND)
        between = [after - before for before, after in itertools.pairwise(clock.times[first:])]
        if turn:  # the first is for warming up
            found["load"].append((await backend.stats())["load_seconds"])
            found["stall"].append(max(between) - statistics.median(between))
    for i in range(REQUESTS):
        await backend.abort(str(i))
    await asyncio.gather(*sampling)
    await backend.close()
    return found


class Clock:
    """The times at which a model began to compute."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.times, self._ticks = list[float](), threading.Semaphore(0)
        module.register_forward_pre_hook(self._tick)

    def _tick(self, *_: Any) -> None:
        self.times.append(time.perf_counter())
        self._ticks.release()

    async def wait(self, count: int) -> None:
        """Until it has begun so many more times."""
        while self._ticks.acquire(blocking=False):
            pass
        for _ in range(count):
            await asyncio.to_thread(self._ticks.acquire)


if __name__ == "__main__":
    _, given, threads, repeat = sys.argv
    torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="forge-bench-") as folder:
        print(json.dumps(asyncio.run(main(json.loads(given), int(repeat), WeightStore("swap", Path(folder))))))
