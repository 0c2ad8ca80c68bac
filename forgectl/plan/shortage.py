"""Explains why meshes found no GPUs: there are never enough, or others have taken them at present."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from forgectl.errors import BusyError
from forgectl.plan.allotment import Misfit, Pool, RoomRequest

SHOWN = 8
"""Number of hosts or holders that one message lists; it only counts the rest."""


def never_fits(misfits: Iterable[Misfit[Pool]], whole: Pool) -> Iterator[tuple[str, str]]:
    """(path in the spec, message) for each misfit; a service is reported once, for its first replica."""
    reported: set[str] = set()
    for misfit in misfits:
        request = misfit.request
        if request.where not in reported:
            reported.add(request.where)
            yield f"{request.where}.procs", f"{wish(request, whole.hosts, _gpus)}, but {_stock(misfit, whole)}"


def busy(misfits: Sequence[Misfit[Pool]], whole: Pool) -> BusyError:
    """The error for meshes that would fit if others did not hold GPUs; it names these holders."""
    hosts = _concerned(misfits, whole)
    holders = _holders(hosts, whole) or _holders(list(whole.gpus), whole)
    wishes = listed([f"{m.request.where} {wish(m.request, whole.hosts, _gpus)}" for m in misfits], "meshes")
    return BusyError(
        f"not enough free GPUs: {wishes}. Taken: {listed(holders, 'holders')}",
        hint="wait until they are free, end what holds them (a run of yours: `forgectl shutdown --run RUN`), "
        "or ask for fewer GPUs",
    )


def wish(request: RoomRequest, hosts: int, many: Callable[[int], str]) -> str:
    """What a mesh wants, in words; `hosts` is how many there are, `many` describes a number of GPUs or slots."""
    _, _, name = request.where.partition(".")
    replica = f"replica {request.mesh} " if name and request.mesh != name else ""
    if request.hosts is None:
        several = request.procs > 1 and hosts > 1
        shares = ", on one host or in equal shares on several" if several else ""
        return f"{replica}wants {many(request.procs)}{shares}"
    count = request.hosts if isinstance(request.hosts, int) else len(request.hosts)
    each = many(request.procs // count)
    if isinstance(request.hosts, tuple):
        on = request.hosts[0] if count == 1 else f"each of {', '.join(request.hosts)}"
    else:
        on = "one host" if count == 1 else f"each of {count} hosts"
    return f"{replica}wants {each} on {on}"


def _stock(misfit: Misfit[Pool], whole: Pool) -> str:
    """What each host has, and how much of it other meshes of the spec took before."""
    hosts = _concerned([misfit], whole)
    sharing: dict[tuple[str, ...], list[str]] = {}
    for host in hosts:
        uuids = tuple(g.uuid for g in whole.gpus[host]) if whole.room(host) == len(whole.gpus[host]) else ()
        sharing.setdefault(uuids or (f"alone: {host}",), []).append(host)
    texts = []
    for names in sharing.values():
        gpus = whole.gpus[names[0]]
        verb = "has" if len(names) == 1 else "share"
        room = whole.room(names[0])
        capped = f", of which its slots allow {room}" if room < len(gpus) else ""
        takers = Counter(t for g in gpus if (t := misfit.stock.takers.get(g.uuid)))
        taken = ", ".join(f"{mesh} takes {n}" for mesh, n in takers.items())
        texts.append(
            f"{listed(names, 'hosts', ', ')} {verb} {_gpus(len(gpus))}{capped}" + (f" ({taken})" if taken else "")
        )
    return listed(texts, "hosts")


def _concerned(misfits: Iterable[Misfit[Pool]], whole: Pool) -> list[str]:
    named: set[str] = set()
    for m in misfits:
        named |= set(m.request.hosts if isinstance(m.request.hosts, tuple) else whole.gpus)
    return [h for h in whole.gpus if h in named]


def _holders(hosts: Iterable[str], whole: Pool) -> list[str]:
    """`GPU 0, 1 of gpu01 by run x`: one text per holder and host; a GPU that hosts share is reported once."""
    by: dict[tuple[str, str], list[str]] = {}
    reported: set[str] = set()
    for host in hosts:
        for gpu in whole.gpus[host]:
            if gpu.holder is not None and gpu.uuid not in reported:
                reported.add(gpu.uuid)
                by.setdefault((host, gpu.holder), []).append(gpu.visible)
    return [f"GPU {', '.join(gpus)} of {host} by {holder}" for (host, holder), gpus in by.items()]


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else f"{count} GPU" + "s" * (count > 1)


def listed(texts: Sequence[str], what: str, separator: str = "; ") -> str:
    """The first SHOWN of `texts`, joined, and how many more `what` there are."""
    more = len(texts) - SHOWN
    return separator.join(texts[:SHOWN]) + (f"{separator}and {more} more {what}" if more > 0 else "")
