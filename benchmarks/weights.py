"""Measures weights in flight beside a plain memcpy of as many bytes: `python benchmarks/weights.py …`.

One process pushes; then 1 or 4 readers (`--n`) load at once, each into tensors that it has. The memcpy beside each
sample is between tensors that are in memory already, by one process or by as many at once as load. Exit 1 where a limit
was missed.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forge import Forge
from harness import Sections, run
from measure import Row

SIZES = {"10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9}
LIMITED, OF_MEMCPY = "1 GB", 3.0
TENSORS = 40
MEMORY = Path("/dev/shm")


def weights(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the call that publishes until all readers have the weights in their own tensors."""
    import torch

    torch.set_num_threads(1)
    for size, count in SIZES.items():
        source = {f"layers.{i}.weight": torch.rand(count // 4 // TENSORS) for i in range(TENSORS)}
        for readers in options.n:
            folder = MEMORY / forge.folder().name
            try:
                yield from _rows(
                    f"{size}, {readers} reader{'s' * (readers > 1)}", folder, source, readers, options.repeat
                )
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _rows(what: str, folder: Path, source: dict[str, Any], readers: int, repeat: int) -> Iterator[Row]:
    from actors import WeightStore

    store = WeightStore("bench", folder)
    samples: dict[str, list[float]] = defaultdict(list)
    with _started(store, source, readers) as pipes:
        _all(pipes, "memcpy")  # touches their tensors
        for _ in range(2):
            samples["push into new pages"].append(_push(store, source))
        for _ in range(repeat):
            push = _push(store, source)
            load, memcpy = _all(pipes, "load"), _all(pipes, "memcpy")
            for side, seconds in (("push", push), ("load", load), ("memcpy", memcpy)):
                samples[side].append(seconds)
            samples["(push + load) / memcpy"].append((push + load) / memcpy)
    for side, values in samples.items():
        ratio = "/" in side
        limit = OF_MEMCPY if ratio and what.startswith(LIMITED) else None
        yield Row("weights", f"{what}: {side}", "" if ratio else "s", tuple(values), limit)


def _push(store: Any, source: dict[str, Any]) -> float:
    began = time.monotonic()
    store.publish(None, source)
    return time.monotonic() - began


def _all(pipes: list[Connection], what: str) -> float:
    """Seconds until all readers have done it at once."""
    began = time.monotonic()
    for pipe in pipes:
        pipe.send(what)
    for pipe in pipes:
        pipe.recv()
    return time.monotonic() - began


@contextmanager
def _started(store: Any, source: dict[str, Any], readers: int) -> Iterator[list[Connection]]:
    """Reader processes, by their pipes. They are forks, and read the source of the memcpy where it is."""
    fork = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for _ in range(readers):
        ours, theirs = fork.Pipe()
        processes.append(fork.Process(target=_read, args=(store, source, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _read(store: Any, source: dict[str, Any], pipe: Connection) -> None:
    import torch

    targets = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    while True:
        if pipe.recv() == "load":
            store.fetch().copy_to(targets)
        else:
            for name, target in targets.items():
                target.copy_(source[name])
        pipe.send("done")


SECTIONS: Sections = {"weights": weights}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures weights in flight beside a memcpy", [1, 4]))
