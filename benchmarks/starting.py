"""How long until ranks work together: from nothing, and again after one of them was killed."""

from __future__ import annotations

import os
import signal
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator

from forge import Forge, ranks_of
from measure import BIN, PROGRAMS, Row, Stamps, environment, python, seconds_of, started

BESIDE_IMPORT = 1.0  # seconds
OF_TORCHRUN = {8: 0.40, 16: 0.25}
RESTARTED_WITHIN = 0.3  # seconds
RESTART_RANKS = 8


def torchrun(*options: str) -> list[str]:
    """The start of a torchrun command for one machine."""
    return [str(BIN / "torchrun"), "--standalone", *options]


def first_all_reduce(argv: list[str], env: dict[str, str], stamps: Stamps, ranks: int) -> tuple[float, float]:
    """Seconds from a command's start to the last rank's all_reduce, and to the command's end."""
    began = time.monotonic()
    with started(argv, env, stamps.folder / "log") as process:
        reduced = stamps.last(ranks, process=process) - began
        process.wait(120)
        return reduced, time.monotonic() - began


def launch(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the command to the first all_reduce done on every rank, cold, forgectl and torchrun by turns."""
    meet = str(PROGRAMS / "meet.py")
    for n in options.n:
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.repeat):
            stamps = Stamps(forge.folder())
            argv = [*torchrun("--nproc-per-node", str(n)), meet, str(stamps.folder)]
            env = environment(TMPDIR=str(stamps.folder))  # torchrun leaves a folder there
            reduced, ended = first_all_reduce(argv, env, stamps, n)
            samples["torchrun"].append(reduced)
            samples["torchrun, whole command"].append(ended)
            stamps = Stamps(forge.folder())
            argv = forge.argv("run", "-n", str(n), meet, str(stamps.folder))
            reduced, ended = first_all_reduce(argv, forge.env, stamps, n)
            samples["forgectl"].append(reduced)
            samples["forgectl, whole command"].append(ended)
            samples["bare import torch"].append(seconds_of(python("import torch")))
        bare = Row("launch", f"{n} ranks: bare import torch", "s", tuple(samples.pop("bare import torch")))
        yield bare
        for side, values in samples.items():
            yield Row("launch", f"{n} ranks: {side}", "s", tuple(values))
        ratios = tuple(a / b for a, b in zip(samples["forgectl"], samples["torchrun"], strict=True))
        yield Row("launch", f"{n} ranks: forgectl / torchrun", "", ratios, OF_TORCHRUN.get(n))
        beyond = tuple(a - b for a, b in zip(samples["forgectl"], bare.samples, strict=True))
        limit = BESIDE_IMPORT if n == RESTART_RANKS else None
        yield Row("launch", f"{n} ranks: forgectl beyond one bare import", "s", beyond, limit)


def restart(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the SIGKILL of one rank of 8 to the all_reduce of all ranks of the next generation.

    forgectl alone: under `torchrun --standalone` (torch 2.13) the next attempt finds the addresses of the dead
    one in the same store, and gloo fails to connect, so that there is nothing to measure.
    """
    n = RESTART_RANKS
    ours: list[float] = []
    with forge.running("meet.py", "--stay", procs=n, restart={"max": options.repeat, "backoff": 0}) as (name, stamps):
        stamps.last(n)
        for generation in range(1, options.repeat + 1):
            pid = ranks_of(forge.status(name))[3]["pid"]
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            ours.append(stamps.last(n, generation) - killed)
    yield Row("restart", f"{n} ranks: forgectl", "s", tuple(ours), RESTARTED_WITHIN)
