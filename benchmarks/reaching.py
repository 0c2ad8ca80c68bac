"""What it costs that hosts are reached by ssh, beside the same hosts' names on this machine."""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge import Forge
from measure import BenchmarkError, Row, Stamps
from starting import first_all_reduce

if TYPE_CHECKING:
    from tests.lab.lab import Lab

HOSTS, RANKS = 3, 6
LONGER_BY = 2.5  # seconds


@contextmanager
def lab(forge: Forge) -> Iterator[Lab]:
    """Three hosts with an sshd each, known to the commands of `forge`; BenchmarkError where there can be none."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.lab.fixtures import obstacle
    from tests.lab.lab import Lab

    if reason := obstacle():
        raise BenchmarkError(reason)
    with Lab(HOSTS) as hosts:
        forge.more_env |= hosts.env
        try:
            yield hosts
        finally:
            forge.seconds("shutdown", "--all", "--timeout", "1")
            for name in hosts.env:
                del forge.more_env[name]


def launch(forge: Forge, options: Namespace) -> Iterator[Row]:
    """From the command to the first all_reduce done on every rank, files synced, by turns with hosts that are here."""
    samples: dict[str, list[float]] = defaultdict(list)
    with lab(forge) as hosts:
        sides: dict[str, list[dict[str, Any]]] = {
            "by ssh": [{"name": name, "python": sys.executable} for name in hosts.names],
            "all this machine": [{"name": f"local{n}", "local": True} for n in range(HOSTS)],
        }
        for turn in range(options.repeat + 1):  # the first one ships forgectl's code, and syncs
            for side, places in sides.items():
                seconds = _launch(forge, Path(tempfile.mkdtemp(dir=hosts.shared)), places)
                if turn:
                    samples[side].append(seconds)
    for side, values in samples.items():
        yield Row("launch", f"{RANKS} ranks on {HOSTS} hosts, {side}", "s", tuple(values))
    longer = tuple(ssh - here for ssh, here in zip(*samples.values(), strict=True))
    yield Row("launch", f"{RANKS} ranks on {HOSTS} hosts: longer by ssh", "s", longer, LONGER_BY)


def _launch(forge: Forge, folder: Path, places: list[dict[str, Any]]) -> float:
    """Seconds until all ranks are done, of a run that then ends by itself; its ranks leave their stamps in `folder`."""
    run = ["meet.py", str(folder)]
    script = {"run": run, "procs": RANKS, "hosts": HOSTS, "env": {"OMP_NUM_THREADS": "1"}}
    spec = forge.spec(forge.folder(), script, hosts=places)
    return first_all_reduce(forge.argv("launch", str(spec)), forge.env, Stamps(folder), RANKS)[0]
