"""What a call costs, beside plain Monarch's: on this machine, and to another host."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from forge import Forge
from measure import MEBI, Row
from sides import OURS, PLAIN, Side, both

CALLS, ROUNDS = 200, 10
ON_RANKS = {1: 0.45, 2: None, 4: 0.5, 8: 0.5, 16: None}
ONE = 0.45
ROUTE = 0.6
AT_ONCE = 2000
FLIGHT, FLOWN = 8000, 10_000  # answers a second; calls
RATE = 1.2  # GB/s
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
                yield from beside("service", "fanout, 2 replicas", by_turns(ours, plain, "fanout", "call"))
                lost, took = zip(*(ours.ask("all_routed", AT_ONCE) for _ in range(options.repeat)), strict=True)
                yield Row("service", f"{AT_ONCE:,} at once: lost", "", (sum(lost),), 0)
                yield Row("service", f"{AT_ONCE:,} at once: all answered after", "s", took)


def flight(forge: Forge, options: Namespace) -> Iterator[Row]:
    """Many calls under way at once."""
    with both(forge) as sides:
        for side in sides:
            side.ask("launch", 8)
        for what, ranks in {"8 ranks in turn": range(8), "one rank": range(1)}.items():
            values = _turns(sides, lambda s, ranks=ranks: s.ask("flight", FLOWN, *ranks), options.repeat)
            for name, limit in ((OURS, FLIGHT), (PLAIN, None)):
                label = f"{FLOWN:,} calls at once, {what}: {name}"
                yield Row("flight", label, "calls/s", tuple(values[name]), limit, least=True)


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
                seconds = _turns(sides, lambda s, verb=verb, calls=calls: s.ask("seconds", verb, calls), ROUNDS)
                for name, values in seconds.items():
                    rates = tuple(size / 1e9 / s for s in values)
                    label = f"{mebi} MiB of {kind} as {what}: {name}"
                    yield Row("argument", label, "GB/s", rates, limit if name == OURS else None, least=True)


def by_turns(ours: Side, plain: Side, verb: str, plains: str = "", calls: int = CALLS) -> Mapping[str, list[float]]:
    """Seconds of one call by either side, which Monarch's calls otherwise where `plains` is given."""
    verbs = {ours.name: verb, plain.name: plains or verb}
    return _turns((ours, plain), lambda side: side.ask("seconds", verbs[side.name], calls), ROUNDS)


def _turns(sides: Sequence[Side], take: Callable[[Side], float], rounds: int) -> Mapping[str, list[float]]:
    """A sample a round of each side, after one that warms it."""
    samples: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for side in sides:
            value = take(side)
            if turn:
                samples[side.name].append(value)
    return samples


def beside(section: str, what: str, seconds: Mapping[str, list[float]], limit: float | None = None) -> Iterator[Row]:
    """Rows of both sides, in ms, and their ratio."""
    for name, values in seconds.items():
        yield Row(section, f"{what}: {name}", "ms", tuple(1000 * s for s in values))
    yield ratio(section, what, seconds[OURS], seconds[PLAIN], limit)


def ratio(section: str, what: str, ours: list[float], plain: list[float], limit: float | None) -> Row:
    """The row of ours / theirs, turn by turn."""
    ratios = tuple(a / b for a, b in zip(ours, plain, strict=True))
    return Row(section, f"{what}: {OURS} / {PLAIN}", "", ratios, limit)
