"""Room for ranks without GPUs: a host takes as many as it has slots, or any number where it says nothing of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from forgectl.frozen import dataclass
from forgectl.plan.allotment import Allotment, Misfit, RoomRequest, in_sets
from forgectl.plan.shortage import listed, wish

UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Slots:
    """How many ranks each host still takes, in the spec's order; `takers` tells what it gave to which mesh."""

    room: dict[str, int]
    takers: dict[str, dict[str, int]] = field(default_factory=dict)  # host → mesh → slots
    tightest: bool = False  # which hosts are the most welcome: those with least room, or the first ones

    @classmethod
    def of(cls, slots: Mapping[str, int | None]) -> Slots:
        """The slots of hosts by name; None where a host takes any number."""
        return cls({host: UNLIMITED if count is None else count for host, count in slots.items()})

    @property
    def size(self) -> int:
        """How many ranks there is room for."""
        return sum(self.room.values())

    @property
    def hosts(self) -> int:
        """How many hosts there are."""
        return len(self.room)

    def take(self, hosts: Sequence[str], each: int) -> Allotment | None:
        """Room for `each` on each of `hosts`, or None where that is not there."""
        if any(self.room[host] < each for host in hosts):
            return None
        return Allotment(tuple(hosts), dict.fromkeys(hosts, ()))

    def less(self, request: RoomRequest, allotment: Allotment) -> Slots:
        """What is left after a mesh came."""
        each = request.procs // len(allotment.hosts)
        room, takers = dict(self.room), dict(self.takers)
        for host in allotment.hosts:
            if room[host] < UNLIMITED // 2:
                room[host] -= each
                takers[host] = {**takers.get(host, {}), request.mesh: each}
        return replace(self, room=room, takers=takers)

    def fitting(self, count: int, each: int) -> Iterator[tuple[str, ...]]:
        """Sets of `count` hosts with room for `each`: the first in the spec's order first, or the tightest fit."""
        roomy = [host for host, room in self.room.items() if room >= each]
        yield from in_sets(roomy, sorted(roomy, key=self.room.__getitem__) if self.tightest else roomy, count)

    def for_search(self) -> Slots:
        """The same, with the tightest fit first."""
        return replace(self, tightest=True)


def never_fits(misfits: Iterable[Misfit[Slots]], whole: Slots) -> Iterator[tuple[str, str]]:
    """(place in the spec, message) for each misfit; a service is told once, for its first replica."""
    told: set[str] = set()
    for misfit in misfits:
        request = misfit.request
        if request.where not in told:
            told.add(request.where)
            yield f"{request.where}.procs", f"{wish(request, whole.hosts, _slots)}, but {_stock(misfit, whole)}"


def _stock(misfit: Misfit[Slots], whole: Slots) -> str:
    """What each host has, and what other meshes of the spec took of it before."""
    hosts = misfit.request.hosts
    said = []
    for host in hosts if isinstance(hosts, tuple) else whole.room:
        takers = misfit.stock.takers.get(host, {})
        taken = ", ".join(f"{mesh} takes {count}" for mesh, count in takers.items())
        said.append(f"{host} has {_slots(whole.room[host])}" + (f" ({taken})" if taken else ""))
    return listed(said, "hosts")


def _slots(count: int) -> str:
    if count == 0:
        return "no slot"
    return "any number" if count == UNLIMITED else f"{count} slot" + "s" * (count > 1)
