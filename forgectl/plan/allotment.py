"""Which mesh gets which hosts and GPUs: a bounded search over the free GPUs and slots of hosts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from forgectl.frozen import dataclass
from forgectl.model.plan import Gpu

TRIES = 2000
"""Candidates that a search may look at before it gives up."""


@dataclass(frozen=True)
class RoomRequest:
    """A mesh that wants, for each rank, a GPU or a slot.

    `hosts`: these hosts, in this order; or this many; or None: as few as have room. `where` is its path in the spec.
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


S = TypeVar("S", bound="Stock")


class Stock(Protocol):
    """What hosts can still give in equal shares: GPUs (`Pool`), or room for ranks without GPUs (`Slots`)."""

    @property
    def size(self) -> int:
        """An upper bound of all there is."""

    @property
    def hosts(self) -> int:
        """How many hosts there are."""

    def take(self, hosts: Sequence[str], each: int) -> Allotment | None:
        """`each` on each of `hosts`, or None if one has less."""

    def less(self: S, request: RoomRequest, allotment: Allotment) -> S:
        """What is left after a mesh took its share."""

    def fitting(self, count: int, each: int) -> Iterator[tuple[str, ...]]:
        """Sets of `count` hosts with room for `each`, the preferred first."""

    def for_search(self: S) -> S:
        """The same stock for when room is short: it prefers the tightest fit."""


@dataclass(frozen=True)
class Pool:
    """The GPUs that are still available, by host in the spec's order; `takers` says which meshes took the others.

    Hosts of one machine share GPUs. A host in `caps` gives no more than that number.
    """

    gpus: dict[str, tuple[Gpu, ...]]
    takers: dict[str, str] = field(default_factory=dict)  # uuid → mesh
    caps: dict[str, int] = field(default_factory=dict)

    @cached_property
    def _sightings(self) -> Counter[str]:
        return Counter(g.uuid for gpus in self.gpus.values() for g in gpus)

    @property
    def size(self) -> int:
        """How many different GPUs there are."""
        return len(self._sightings)

    @property
    def hosts(self) -> int:
        """How many hosts there are, with GPUs or without."""
        return len(self.gpus)

    def room(self, host: str) -> int:
        """How many GPUs a host can give."""
        return min(len(self.gpus[host]), self.caps.get(host, len(self.gpus[host])))

    def free(self) -> Pool:
        """The pool of the GPUs that nobody outside this run holds."""
        free = {h: tuple(g for g in gpus if g.holder is None) for h, gpus in self.gpus.items()}
        return Pool(free, caps=self.caps)

    def take(self, hosts: Sequence[str], each: int) -> Allotment | None:
        """`each` GPUs on each of `hosts`, or None if one has fewer.

        It takes GPUs that no other host can see first, then the lowest index.
        """
        got: dict[str, tuple[Gpu, ...]] = {}
        taken: set[str] = set()
        for host in hosts:
            left = [g for g in self.gpus[host] if g.uuid not in taken]
            chosen = {g.uuid for g in sorted(left, key=lambda g: self._sightings[g.uuid])[:each]}
            if len(chosen) < each or self.room(host) < each:
                return None
            taken |= chosen
            got[host] = tuple(g for g in left if g.uuid in chosen)
        return Allotment(tuple(hosts), got)

    def less(self, request: RoomRequest, allotment: Allotment) -> Pool:
        """The pool after a mesh took its GPUs."""
        taken = {g.uuid: request.mesh for gpus in allotment.gpus.values() for g in gpus}
        left = {h: tuple(g for g in gpus if g.uuid not in taken) for h, gpus in self.gpus.items()}
        caps = {h: cap - len(allotment.gpus.get(h, ())) for h, cap in self.caps.items()}
        return Pool(left, {**self.takers, **taken}, caps)

    def fitting(self, count: int, each: int) -> Iterator[tuple[str, ...]]:
        """Sets of `count` hosts with room for `each`: the tightest fit first, then in the spec's order."""
        if count * each > self.size:
            return
        roomy = [h for h in self.gpus if self.room(h) >= each]
        yield from in_sets(roomy, sorted(roomy, key=self.room), count)

    def for_search(self) -> Pool:
        """Itself: it already prefers the tightest fit."""
        return self


def in_sets(hosts: Sequence[str], preferred: Sequence[str], count: int) -> Iterator[tuple[str, ...]]:
    """Sets of `count` hosts, each in the order of `hosts`; the sets themselves come in the order of `preferred`."""
    place = {h: i for i, h in enumerate(hosts)}
    for chosen in itertools.combinations(preferred, count):
        yield tuple(sorted(chosen, key=place.__getitem__))


@dataclass(frozen=True)
class Misfit(Generic[S]):
    """A request that found no room, and the stock at that time."""

    request: RoomRequest
    stock: S


def in_order(requests: Iterable[RoomRequest]) -> list[RoomRequest]:
    """Those that name their hosts first, then the bigger ones: the hardest to place chooses first."""
    return sorted(requests, key=lambda r: (not isinstance(r.hosts, tuple), -r.procs))


def allot(requests: Iterable[RoomRequest], stock: S) -> dict[str, Allotment] | list[Misfit[S]]:
    """Every mesh's allotment; else the requests that find no room when each takes its preferred hosts."""
    order = in_order(requests)
    got, lacking = _greedy(order, stock)
    if not lacking:
        return got
    return _search(order, stock.for_search()) or lacking


def _greedy(order: Sequence[RoomRequest], stock: S) -> tuple[dict[str, Allotment], list[Misfit[S]]]:
    got: dict[str, Allotment] = {}
    lacking: list[Misfit[S]] = []
    hopeless: set[tuple[object, int]] = set()  # the stock only shrinks: what failed once fails again
    for request in order:
        shape = (request.hosts, request.procs)
        looks = iter(range(0 if shape in hopeless else TRIES))
        best = next(_candidates(request, stock, looks), None)
        if best is None:
            hopeless.add(shape)
            lacking.append(Misfit(request, stock))
        else:
            got[request.mesh] = best
            stock = stock.less(request, best)
    return got, lacking


def _search(order: Sequence[RoomRequest], stock: S) -> dict[str, Allotment] | None:
    """Depth first along the preferences, with an explicit stack: meshes may outnumber Python's frames."""
    if sum(r.procs for r in order) > stock.size:
        return None
    tries = iter(range(TRIES))
    stocks, branches, chosen = [stock], list[Iterator[Allotment]](), list[Allotment]()
    while len(chosen) < len(order):
        if len(branches) == len(chosen):
            branches.append(_candidates(order[len(chosen)], stocks[-1], tries))
        found = next(branches[-1], None)
        if found is not None:
            stocks.append(stocks[-1].less(order[len(chosen)], found))
            chosen.append(found)
            continue
        branches.pop()
        if not branches:
            return None
        stocks.pop()
        chosen.pop()
    return {r.mesh: a for r, a in zip(order, chosen, strict=True)}


def _candidates(request: RoomRequest, stock: Stock, tries: Iterator[int]) -> Iterator[Allotment]:
    """The possible allotments of a request, best first. Each attempt uses up one of `tries`."""
    for _, (hosts, each) in zip(tries, _choices(request, stock), strict=False):
        allotment = stock.take(hosts, each)
        if allotment is not None:
            yield allotment


def _choices(request: RoomRequest, stock: Stock) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(request.hosts, tuple):
        yield request.hosts, request.procs // len(request.hosts)
        return
    counts: Iterable[int] = range(1, stock.hosts + 1) if request.hosts is None else (request.hosts,)
    for count in counts:
        if request.procs % count == 0:
            for hosts in stock.fitting(count, request.procs // count):
                yield hosts, request.procs // count
