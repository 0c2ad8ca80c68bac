"""What a call costs, beside plain Monarch's: on this machine, and to another host."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sides
from forge import Forge
from measure import MEBI, PROGRAMS, BenchmarkError, Row, begin_peak, kib_of, peak_of, started, wait_for
from reaching import lab
from sides import OURS, PLAIN, QUIET, Side, both, by_standard_streams, open_until_left
from sides import side as one_side

if TYPE_CHECKING:
    from tests.lab.lab import Lab

CALLS, ROUNDS = 200, 10
ON_RANKS = {1: 0.45, 2: None, 4: 0.5, 8: 0.5, 16: None}
ONE = 0.45
ROUTE = 0.6
FAR = 0.5
PORT = 7001  # of Monarch's worker, on a host of the lab, where nothing else listens
AT_ONCE = 2000
FLIGHT, FLOWN = 8000, 10_000  # answers a second; calls
RATE = 1.2  # GB/s
STREAM, STREAMED = 20_000, 50_000  # values a second; values
TO_EACH, COPIES, LARGE = 1.0, 1.05, 1 << 30  # GB/s; times as many bytes as are sent; bytes
ARGUMENTS = {("numpy", 1): None, ("numpy", 8): None, ("numpy", 64): RATE, ("torch", 64): None}  # MiB


def call(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A call of meshes of several sizes, and the other ways to call."""
    with both(forge) as (ours, plain):
        for ranks, limit in ON_RANKS.items():
            for side in (ours, plain):
                side.ask("launch", ranks)
            what = f"{ranks} rank{'s' * (ranks > 1)}"
            yield from beside("call", what, by_turns(ours, plain, "call"), limit)
            if ranks == 1:
                values = by_turns(ours, plain, "casts", calls=1)
                yield from beside("call", "1 rank, 1,000 broadcasts and a call", values)
            if ranks == 8:
                yield from beside("call", "one of 8 ranks, call_one", by_turns(ours, plain, "one"), ONE)
                yield from beside("call", "one of 8 ranks, choose", by_turns(ours, plain, "choose"))
            for side in (ours, plain):
                side.ask("stop")


def service(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A route through services beside a plain call on one rank; and many requests at once."""
    with both(forge) as (ours, plain):
        plain.ask("launch", 1)
        for replicas, limit in {1: None, 2: ROUTE, 4: None}.items():
            ours.ask("serve", replicas)
            what = f"route, {replicas} replica{'s' * (replicas > 1)}"
            yield from beside("service", what, by_turns(ours, plain, "route", "call"), limit)
            if replicas == 2:
                yield from _from_actor(ours, options.repeat)
                yield from beside("service", "fanout, 2 replicas", by_turns(ours, plain, "fanout", "call"))
                lost, took = zip(*(ours.ask("all_routed", AT_ONCE) for _ in range(options.repeat)), strict=True)
                yield Row("service", f"{AT_ONCE:,} at once: lost", "", (sum(lost),), 0)
                yield Row("service", f"{AT_ONCE:,} at once: all answered after", "s", took)


def _from_actor(ours: Side, repeat: int) -> Iterator[Row]:
    """Routes from an actor beside those from the driver, which grants the replicas to the actor."""
    questions = {"the driver": ("seconds", "route", CALLS), "an actor": ("in_actor", "seconds", CALLS)}
    samples: dict[str, list[float]] = defaultdict(list)
    for turn in range(ROUNDS + 1):  # the first warms both
        for name, question in questions.items():
            value = ours.ask(*question)
            if turn:
                samples[name].append(value)
    for name, values in samples.items():
        yield Row("service", f"route, 2 replicas, from {name}: {OURS}", "ms", tuple(1000 * s for s in values))
    ratios = tuple(a / b for a, b in zip(samples["an actor"], samples["the driver"], strict=True))
    yield Row("service", "route, 2 replicas: an actor / the driver", "", ratios)
    rates = tuple(ours.ask("in_actor", "rate", AT_ONCE) for _ in range(repeat))
    yield Row("service", f"{AT_ONCE:,} at once from an actor: {OURS}", "calls/s", rates)


def flight(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Many calls under way at once."""
    with both(forge) as sides:
        for side in sides:
            side.ask("launch", 8)
        for what, ranks in {"8 ranks in turn": range(8), "one rank": range(1)}.items():
            values = _turns(dict.fromkeys(sides, ("flight", FLOWN, *ranks)), options.repeat)
            for name, limit in ((OURS, FLIGHT), (PLAIN, None)):
                label = f"{FLOWN:,} calls at once, {what}: {name}"
                yield Row("flight", label, "calls/s", tuple(values[name]), limit, least=True)


def stream(forge: Forge, options: Namespace) -> Iterator[Row]:
    """What one rank yields: how much a second, and how long a value is on its way."""
    with sides.side(forge, OURS) as ours:
        ours.ask("launch", 1)
        ours.ask("streamed", STREAMED)
        rates = [ours.ask("streamed", STREAMED) for _ in range(ROUNDS)]
        yield Row("stream", "small values of one rank", "values/s", tuple(rates), STREAM, least=True)
        took = [1000 * seconds for seconds in ours.ask("underway", CALLS)]
        yield Row("stream", "one value, from `yield` to its receipt", "ms", tuple(took))


def argument(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Data to one rank, and back from it."""
    with both(forge) as sides:
        for side in sides:
            side.ask("launch", 1)
        for (kind, mebi), least in ARGUMENTS.items():
            size, calls = mebi * MEBI, max(1, 16 // mebi)
            for side in sides:
                side.ask("prepare", kind, size)
            for verb, what, limit in (("take", "argument", least), ("give", "result", None)):
                for name, values in _turns(dict.fromkeys(sides, ("seconds", verb, calls)), ROUNDS).items():
                    rates = tuple(size / 1e9 / s for s in values)
                    label = f"{mebi} MiB of {kind} as {what}: {name}"
                    yield Row("argument", label, "GB/s", rates, limit if name == OURS else None, least=True)
    yield from _large(forge)


def _large(forge: Forge) -> Iterator[Row]:
    """A tensor to 4 ranks at once; and what one of 1 GiB adds to the memory of its sender and of its receiver."""
    with one_side(forge, OURS) as ours:
        ours.ask("launch", 4)
        ours.ask("prepare", "torch", 64 * MEBI)
        rates = tuple(64 * MEBI / 1e9 / ours.ask("seconds", "take_all", 1) for _ in range(ROUNDS))
        yield Row("argument", "64 MiB of torch to 4 ranks at once, each", "GB/s", rates, TO_EACH, least=True)
        ours.ask("prepare", "torch", LARGE)
        pids = {"caller": ours.pid, "rank": ours.ask("pids")[0]}
        for verb, what in (("take", "argument"), ("give", "result")):
            before = {who: begin_peak(pid) for who, pid in pids.items()}
            shared = [_shared()]
            with ThreadPoolExecutor(1) as pool:
                call = pool.submit(ours.ask, "seconds", verb, 1)
                while not call.done():
                    shared.append(_shared())
                    time.sleep(0.005)
                call.result()
            grown = {who: peak_of(pid) - before[who] for who, pid in pids.items()}
            grown["shared memory"] = max(shared) - shared[0]
            for who, mebi in grown.items():
                label = f"1 GiB of torch as {what}: copies, {who}, at most"
                yield Row("argument", label, "", (mebi * MEBI / LARGE,), COPIES)


def _shared() -> float:
    """MiB of shared memory of the machine: its pages are of no process until one maps them."""
    return kib_of(Path("/proc/meminfo"), "Shmem") * 1024 / MEBI


def far(forge: Forge, options: Namespace) -> Iterator[Row]:
    """A call to a host of the lab: ours over CURVE from this machine, Monarch's over TLS from another host of the lab.

    Monarch's client needs a network namespace, and a host has one. It is as many links away.
    """
    with lab(forge) as hosts, _far_plain(forge, hosts) as plain, _far_ours(forge, hosts) as ours:
        for side in (ours, plain):
            side.ask("launch")
        yield from beside("call", "to another host", by_turns(ours, plain, "call"), FAR)


@contextmanager
def _far_ours(forge: Forge, hosts: Lab) -> Iterator[Side]:
    """The driver of a run with an actor on the first host. It connects to our socket once the actor is up."""
    folder, host = forge.folder(), hosts.names[0]
    actors = {"echo": {"class": "echo_forge:Echo", "hosts": [host]}}
    spec = folder / "spec.yaml"
    places = [{"name": host, "python": sys.executable}]
    body = {"name": "far", "hosts": places, "workdir": str(PROGRAMS), "sync": "none", "actors": actors}
    spec.write_text(json.dumps({**body, "driver": {"run": ["far_calls.py", OURS, str(folder / "socket")]}}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        with started(forge.argv("launch", str(spec)), forge.env, folder / "log") as process:
            wait_for(lambda: _has_come(listener, process, folder / "log"), "the driver")
            connection, _ = listener.accept()
            streams = connection.makefile("wb"), connection.makefile("rb")
            connection.close()  # the streams keep it open
            with open_until_left(Side(OURS, process, *streams, folder / "log")) as side:
                yield side


def _has_come(listener: socket.socket, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise BenchmarkError(f"the run ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return bool(select.select([listener], [], [], 0)[0])


@contextmanager
def _far_plain(forge: Forge, hosts: Lab) -> Iterator[Side]:
    """Monarch's client on the last host, and a worker on the first."""
    from certificates import issue

    folder = forge.folder()
    program, [there, *_, here] = [sys.executable, str(PROGRAMS / "far_calls.py")], hosts.names
    secrets = Path(tempfile.mkdtemp(dir=hosts.shared))
    variables = issue(secrets, {name: hosts.address(name) for name in (there, here)})
    address = f"{hosts.address(there)}:{PORT}"

    def start(host: str, what: str, *arguments: str) -> Any:
        pipe, env = subprocess.PIPE, variables[host] | QUIET
        with (folder / what).open("wb") as log:
            return hosts.popen(
                host, [*program, what, *arguments], env=env, stdin=pipe, stdout=pipe, stderr=log, text=False
            )

    worker = start(there, "worker", address)
    wait_for(lambda: (hosts.address(there), PORT) in hosts.listening(there), "Monarch's worker")
    client = start(here, PLAIN, hosts.address(here), address)
    with worker, open_until_left(by_standard_streams(PLAIN, client, folder / PLAIN)) as side:
        try:
            yield side
        finally:
            worker.kill()  # what it started ends with the lab


def by_turns(ours: Side, plain: Side, verb: str, plains: str = "", calls: int = CALLS) -> Mapping[str, list[float]]:
    """Seconds of one call on each side. `plains` is Monarch's verb where it is another one."""
    return _turns({ours: ("seconds", verb, calls), plain: ("seconds", plains or verb, calls)}, ROUNDS)


def _turns(questions: Mapping[Side, Sequence[Any]], rounds: int) -> Mapping[str, list[float]]:
    """One answer of each side a round. A first round warms both and is not counted."""
    samples: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for side, question in questions.items():
            value = side.ask(*question)
            if turn:
                samples[side.name].append(value)
    return samples


def beside(section: str, what: str, seconds: Mapping[str, list[float]], limit: float | None = None) -> Iterator[Row]:
    """Rows of both sides, in ms, and their ratio."""
    for name, values in seconds.items():
        yield Row(section, f"{what}: {name}", "ms", tuple(1000 * s for s in values))
    yield ratio(section, what, seconds[OURS], seconds[PLAIN], limit)


def ratio(section: str, what: str, ours: list[float], plain: list[float], limit: float | None) -> Row:
    """The row of ours / theirs, taken turn by turn."""
    ratios = tuple(a / b for a, b in zip(ours, plain, strict=True))
    return Row(section, f"{what}: {OURS} / {PLAIN}", "", ratios, limit)
