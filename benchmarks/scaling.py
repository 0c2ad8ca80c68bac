"""What each further host costs a run: time, memory and processor, of hosts that are all this machine."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from forge import Forge
from measure import BenchmarkError, Row, Stamps, cpu_of, memory_of

FEW, MANY = 8, 64
STATUS_WITHIN = 1.0  # seconds
LINEAR = 1.1
"""A host among 64 may cost what it costs among 8, and a tenth: the figures of one turn differ by as much from the next,
as all processes of all hosts share a few cores here with whatever else the machine does."""
LOOKS = 3
IDLE_SECONDS = 5.0

UNITS = {
    "until all are up": "s",
    "status --json": "s",
    "shutdown": "s",
    "memory (PSS)": "MiB",
    "processor until all are up": "s",
    "processor in 60 s of rest": "s",
}
"""What is measured of a run, and in which unit; memory and processor are those of controller and agents."""


def scale(forge: Forge, options: Namespace) -> Iterator[Row]:
    """One rank on each of N hosts: what the run takes, and what each host's part of that is among few and many."""
    samples: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(options.repeat):
        for hosts in options.n:
            for what, value in sample(forge, hosts).items():
                samples[what, hosts].append(value)
    for hosts in options.n:
        for what, unit in UNITS.items():
            limit = STATUS_WITHIN if (what, hosts) == ("status --json", MANY) else None
            yield Row("scale", f"{_hosts(hosts)}: {what}", unit, tuple(samples[what, hosts]), limit)
    if {FEW, MANY} <= set(options.n):
        for what in UNITS:
            pairs = zip(samples[what, MANY], samples[what, FEW], strict=True)
            ratios = tuple((many / MANY) / (few / FEW) for many, few in pairs)
            label = f"per host, {MANY} hosts / {FEW} hosts: {what}"
            yield Row("scale", label, "", ratios, LINEAR, "no faster than linearly, and a tenth")


def _hosts(number: int) -> str:
    return f"{number} host" if number == 1 else f"{number} hosts"


def sample(forge: Forge, hosts: int) -> Mapping[str, float]:
    """Launch, look, rest, shut down: the values of UNITS."""
    stamps = Stamps(forge.folder())
    script = {"run": ["stamp_and_stay.py", str(stamps.folder)], "procs": hosts, "hosts": hosts, "preload": []}
    names = [{"name": f"sim{i}", "local": True} for i in range(hosts)]
    up = forge.seconds("launch", str(forge.spec(stamps.folder, script, hosts=names)), "-d")
    run = forge.status(stamps.folder.name)
    _check(run, hosts)
    pids = [run["controller"]["pid"], *(host["agent_pid"] for host in run["hosts"])]
    busy = sum(map(cpu_of, pids)) + sum(cpu_of(pid, children=True) for pid in pids[:1])  # who started the agents
    looks = [forge.seconds("status", "--json") for _ in range(LOOKS)]
    before, began = sum(map(cpu_of, pids)), time.monotonic()
    time.sleep(IDLE_SECONDS)
    rest = (sum(map(cpu_of, pids)) - before) / (time.monotonic() - began)
    memory = sum(memory_of(pid)["pss"] for pid in pids)
    down = forge.seconds("shutdown", "--run", run["run"])
    values = (up, statistics.median(looks), down, memory, busy, 60 * rest)
    return dict(zip(UNITS, values, strict=True))


def _check(run: dict[str, Any], hosts: int) -> None:
    up = sum(host["state"] == "up" for host in run["hosts"])
    if (up, run["meshes"][0]["ready"]) != (hosts, hosts):
        raise BenchmarkError(f"of {hosts} hosts {up} are up, with {run['meshes'][0]['ready']} ranks")
