"""Room for ranks without GPUs: a host takes as many as it has slots, or any number if `slots` is not given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from forgectl.frozen import dataclass
from forgectl.plan.allotment import Allotment, Misfit, RoomRequest, in_sets
from forgectl.plan.shortage import listed, wish

UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Slots:
    """How many ranks each host still takes, in the spec's order; `takers` says which mesh took how many slots."""

    room: dict[str, int]
    takers: dict[str, dict[str, int]] = field(default_factory=dict)  # host → mesh → slots
    tightest: bool = False  # prefer the hosts with the least room, not the first ones

    @classmethod
    def of(cls, slots: Mapping[str, int | None]) -> Slots:
        """The slots of hosts by name; None: the host takes any number."""
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
        """Room for `each` on each of `hosts`, or None if one has less."""
        if any(self.room[host] < each for host in hosts):
            return None
        return Allotment(tuple(hosts), dict.fromkeys(hosts, ()))

    def less(self, request: RoomRequest, allotment: Allotment) -> Slots:
        """What is left after a mesh took its slots."""
        each = request.procs // len(allotment.hosts)
        room, takers = dict(self.room), dict(self.takers)
        for host in allotment.hosts:
            if room[host] < UNLIMITED // 2:
                room[host] -= each
                takers[host] = {**takers.get(host, {}), request.mesh: each}
        return replace(self, room=room, takers=takers)

    def fitting(self, count: int, each: int) -> Iterator[tuple[str, ...]]:
        """Sets of `count` hosts with room for `each`: in the spec's order, or the tightest fit first."""
        roomy = [host for host, room in self.room.items() if room >= each]
        yield from in_sets(roomy, sorted(roomy, key=self.room.__getitem__) if self.tightest else roomy, count)

    def for_search(self) -> Slots:
        """The same, with the tightest fit first."""
        return replace(self, tightest=True)


def never_fits(misfits: Iterable[Misfit[Slots]], whole: Slots) -> Iterator[tuple[str, str]]:
    """(path in the spec, message) for each misfit; a service is reported once, for its first replica."""
    reported: set[str] = set()
    for misfit in misfits:
        request = misfit.request
        if request.where not in reported:
            reported.add(request.where)
            yield f"{request.where}.procs", f"{wish(request, whole.hosts, _slots)}, but {_stock(misfit, whole)}"


def _stock(misfit: Misfit[Slots], whole: Slots) -> str:
    """What each host has, and how much of it other meshes of the spec took before."""
    hosts = misfit.request.hosts
    texts = []
    for host in hosts if isinstance(hosts, tuple) else whole.room:
        takers = misfit.stock.takers.get(host, {})
        taken = ", ".join(f"{mesh} takes {count}" for mesh, count in takers.items())
        texts.append(f"{host} has {_slots(whole.room[host])}" + (f" ({taken})" if taken else ""))
    return listed(texts, "hosts")


def _slots(count: int) -> str:
    if count == 0:
        return "no slot"
    return "any number" if count == UNLIMITED else f"{count} slot" + "s" * (count > 1)
