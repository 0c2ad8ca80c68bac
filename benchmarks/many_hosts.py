"""Measures the controller of a run of many hosts: `python benchmarks/many_hosts.py [--n 32 128 256] …`.

One mesh with 8 ranks on each of N hosts. The controller is the real one, in a process of its own; the agents are not:
they answer at once and start nothing. Somebody follows the run, as a launch does. Measured are the controller's
processor time until all ranks are reported as running, and from there to the end of the run, and the bytes that agents
were sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fake_agents import FakeAgents
from forge import Forge
from harness import Sections, run
from measure import BenchmarkError, Row, cpu_of

from forgectl.controller import client, run_dir
from forgectl.model.plan import Gpu, HostFacts, Plan
from forgectl.plan.placement import place
from forgectl.protocol.control import Attach, Shutdown
from forgectl.spec.load import parse
from forgectl.version import __version__
from forgectl.wire.unix_sockets import dial, peer_pid, private_folder

EACH = 8
FEW, MANY = 32, 256
UP_WITHIN = 1.5
"""Seconds of processor until 256 hosts are up."""
LINEAR = 1.25
"""A host among 256 may cost what it costs among 32, and a quarter."""
UP, SHUTDOWN = "controller's processor until all are up", "controller's processor for the shutdown"


def planned(hosts: int) -> Plan:
    """One mesh that takes all 8 GPUs of each host, as a spec has it."""
    names = [f"node{i:03}" for i in range(hosts)]
    spec = {
        "name": "many",
        "lease": "600s",  # a controller ends an agent that is silent for so long, and these are this very process
        "hosts": [{"name": name, "local": True} for name in names],
        "env": {"NCCL_DEBUG": "WARN", "HF_HOME": "/scratch/cache/huggingface"},
        "scripts": {"sft": {"module": "train --lr 1e-4", "procs": hosts * EACH, "hosts": hosts, "with_gpus": True}},
    }
    facts = {
        name: HostFacts(name, name, 96, tuple(_gpu(i, j) for j in range(EACH)), network="one")
        for i, name in enumerate(names)
    }
    text = json.dumps(spec).encode()
    return place(parse(text, source="spec.yaml", folder=Path("/"), environ={}), facts, python=sys.executable)


def _gpu(host: int, index: int) -> Gpu:
    return Gpu(str(index), f"GPU-{host:08x}-1111-2222-3333-{index:012x}", "NVIDIA H200")


def controller(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Start a controller on fake agents, and shut the run down, by turns for each number of hosts."""
    samples: dict[tuple[str, int], list[float]] = defaultdict(list)
    os.environ["FORGECTL_HOME"] = str(forge.home)
    for _ in range(options.repeat):
        for hosts in options.n:
            for what, value in asyncio.run(_sample(hosts)).items():
                samples[what, hosts].append(value)
    for (what, hosts), values in samples.items():
        limit = UP_WITHIN if (what, hosts) == (UP, MANY) else None
        yield Row("controller", f"{hosts} hosts: {what}", "MB" if "sent" in what else "s", tuple(values), limit)
    if {FEW, MANY} <= set(options.n):
        for what in (UP, SHUTDOWN):
            pairs = zip(samples[what, MANY], samples[what, FEW], strict=True)
            ratios = tuple((many / MANY) / (few / FEW) for many, few in pairs)
            label = f"per host, {MANY} hosts / {FEW} hosts: {what}"
            yield Row("controller", label, "", ratios, LINEAR, "linear, and a quarter")


async def _sample(hosts: int) -> dict[str, float]:
    plan = planned(hosts)
    folder, lock = run_dir.create(plan, b"{}", own=False)
    private_folder(folder.sockets)
    sockets = [folder.agent_socket(i) for i in range(hosts)]
    agents = FakeAgents(sockets, [h.name for h in plan.hosts], "sft", EACH, __version__)
    await agents.listen()
    await asyncio.to_thread(client.start_controller, folder, lock=lock)
    os.close(lock)
    pid = _listener(folder.control_socket)
    follower = asyncio.create_task(asyncio.to_thread(_follow, folder))
    events = hosts * (1 + EACH) + 1  # prepared, each rank started; one store
    await agents.until("Ack", events)
    up, sent = cpu_of(pid), sum(agents.bytes.values())
    began = time.monotonic()
    await asyncio.to_thread(_shut_down, folder)
    await agents.until("Quit", hosts)
    down = cpu_of(pid) - up
    await agents.close()
    await follower
    await asyncio.to_thread(os.waitpid, pid, 0)
    if (final := folder.read_final()) is None or final.state != "stopped":
        raise BenchmarkError(f"the run of {hosts} hosts did not end as it should, {time.monotonic() - began:.1f} s on")
    return {UP: up, SHUTDOWN: down, "sent to agents until all are up": sent / 1e6}


def _listener(path: Path) -> int:
    """The pid of the process that listens at a socket, however busy it is."""
    with dial(path, 5.0) as sock:
        return peer_pid(sock)


def _follow(folder: run_dir.RunDir) -> None:
    """Read all reports of the run, to its end."""
    connection = client.connect(folder)
    assert connection is not None
    connection.send(Attach())
    while connection.receive_line() is not None:
        pass
    connection.close()


def _shut_down(folder: run_dir.RunDir) -> None:
    connection = client.connect(folder)
    assert connection is not None
    connection.send(Shutdown(None, 10.0, "the benchmark"))
    connection.close()


SECTIONS: Sections = {"controller": controller}

if __name__ == "__main__":
    sys.exit(run(SECTIONS, "Measures the controller of a run of many hosts", [32, 128, 256]))
