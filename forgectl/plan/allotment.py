"""Which mesh gets which GPUs: a bounded search over a pool that hosts of one machine share."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from forgectl.plan.model import Gpu

TRIES = 2000
"""Candidates that a search may look at before it gives up."""


@dataclass(frozen=True)
class Request:
    """A mesh that wants one GPU a rank.

    `hosts`: these, in this order; or so many; or None, as few as have room. `where` is its place in the spec.
    """

    mesh: str
    where: str
    procs: int
    hosts: tuple[str, ...] | int | None = None


@dataclass(frozen=True)
class Allotment:
    """The hosts of a mesh by group rank, and its GPUs there by local rank."""

    hosts: tuple[str, ...]
    gpus: dict[str, tuple[Gpu, ...]]


@dataclass(frozen=True)
class Pool:
    """The GPUs that can still be had, by host in the spec's order; `takers` tells where the others went."""

    gpus: dict[str, tuple[Gpu, ...]]
    takers: dict[str, str] = field(default_factory=dict)  # uuid → mesh

    @cached_property
    def _sightings(self) -> Counter[str]:
        return Counter(g.uuid for gpus in self.gpus.values() for g in gpus)

    @property
    def size(self) -> int:
        """How many different GPUs there are."""
        return len(self._sightings)

    def free(self) -> Pool:
        """Those that nobody outside this run holds."""
        return Pool({h: tuple(g for g in gpus if g.holder is None) for h, gpus in self.gpus.items()})

    def take(self, hosts: Sequence[str], each: int) -> Allotment | None:
        """`each` GPUs on each of `hosts`, or None where they are not there.

        A GPU that no other host can see goes first, then the lowest index.
        """
        got: dict[str, tuple[Gpu, ...]] = {}
        taken: set[str] = set()
        for host in hosts:
            left = [g for g in self.gpus[host] if g.uuid not in taken]
            chosen = {g.uuid for g in sorted(left, key=lambda g: self._sightings[g.uuid])[:each]}
            if len(chosen) < each:
                return None
            taken |= chosen
            got[host] = tuple(g for g in left if g.uuid in chosen)
        return Allotment(tuple(hosts), got)

    def less(self, mesh: str, allotment: Allotment) -> Pool:
        """The pool after `mesh` took its GPUs."""
        taken = {g.uuid: mesh for gpus in allotment.gpus.values() for g in gpus}
        left = {h: tuple(g for g in gpus if g.uuid not in taken) for h, gpus in self.gpus.items()}
        return Pool(left, {**self.takers, **taken})

    def fitting(self, count: int, each: int) -> Iterator[tuple[str, ...]]:
        """Sets of `count` hosts with room for `each`: the tightest fit first, then in the spec's order."""
        if count * each > self.size:
            return
        roomy = [h for h, gpus in self.gpus.items() if len(gpus) >= each]
        place = {h: i for i, h in enumerate(roomy)}
        tightest = sorted(roomy, key=lambda h: len(self.gpus[h]))
        for hosts in itertools.combinations(tightest, count):
            yield tuple(sorted(hosts, key=place.__getitem__))


@dataclass(frozen=True)
class Misfit:
    """A request that found no room, and the pool as it was then."""

    request: Request
    pool: Pool


def in_order(requests: Iterable[Request]) -> list[Request]:
    """Those tied to hosts first, then bigger ones first: what is hardest to place has the choice."""
    return sorted(requests, key=lambda r: (not isinstance(r.hosts, tuple), -r.procs))


def allot(requests: Iterable[Request], pool: Pool) -> dict[str, Allotment] | list[Misfit]:
    """Every mesh's allotment; or else what has no room when each takes what it likes best."""
    order = in_order(requests)
    got, lacking = _greedy(order, pool)
    if not lacking:
        return got
    return _search(order, pool) or lacking


def _greedy(order: Sequence[Request], pool: Pool) -> tuple[dict[str, Allotment], list[Misfit]]:
    got: dict[str, Allotment] = {}
    lacking: list[Misfit] = []
    hopeless: set[tuple[object, int]] = set()  # the pool only shrinks: what failed once fails again
    for request in order:
        shape = (request.hosts, request.procs)
        looks = iter(range(0 if shape in hopeless else TRIES))
        best = next(_candidates(request, pool, looks), None)
        if best is None:
            hopeless.add(shape)
            lacking.append(Misfit(request, pool))
        else:
            got[request.mesh] = best
            pool = pool.less(request.mesh, best)
    return got, lacking


def _search(order: Sequence[Request], pool: Pool) -> dict[str, Allotment] | None:
    """Depth first along the preferences, with a stack of its own: meshes may outnumber Python's frames."""
    if sum(r.procs for r in order) > pool.size:
        return None
    tries = iter(range(TRIES))
    pools, branches, chosen = [pool], list[Iterator[Allotment]](), list[Allotment]()
    while len(chosen) < len(order):
        if len(branches) == len(chosen):
            branches.append(_candidates(order[len(chosen)], pools[-1], tries))
        found = next(branches[-1], None)
        if found is not None:
            pools.append(pools[-1].less(order[len(chosen)].mesh, found))
            chosen.append(found)
            continue
        branches.pop()
        if not branches:
            return None
        pools.pop()
        chosen.pop()
    return {r.mesh: a for r, a in zip(order, chosen, strict=True)}


def _candidates(request: Request, pool: Pool, tries: Iterator[int]) -> Iterator[Allotment]:
    """Where a request could go, best first. Takes one of `tries` for each look."""
    for _, (hosts, each) in zip(tries, _choices(request, pool), strict=False):
        allotment = pool.take(hosts, each)
        if allotment is not None:
            yield allotment


def _choices(request: Request, pool: Pool) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(request.hosts, tuple):
        yield request.hosts, request.procs // len(request.hosts)
        return
    counts: Iterable[int] = range(1, len(pool.gpus) + 1) if request.hosts is None else (request.hosts,)
    for count in counts:
        if request.procs % count == 0:
            for hosts in pool.fitting(count, request.procs // count):
                yield hosts, request.procs // count
