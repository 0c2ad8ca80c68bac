"""Finds the addresses at which hosts reach each other and proves them by dials, so that no rank can hang later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from forgectl.errors import UnreachableError
from forgectl.hosts import reach
from forgectl.model.plan import HostPlan, Plan
from forgectl.plan.links import messengers
from forgectl.protocol.host_survey import Dialled, DialOut, DialTarget, Listening, ListenOn
from forgectl.transport.survey import Hosts, combined_error, for_all

Pairs = set[tuple[str, str]]
"""(from, to): hosts by name."""


def verified(plan: Plan, hosts: Hosts, given: Mapping[str, str]) -> Plan:
    """The plan with an address for each host at which the other hosts of its meshes reach it.

    `given`: host → its `address:` in the spec. Hosts that share a network need only 127.0.0.1. Raises UnreachableError.
    """
    network = {name: f.network for name, f in hosts.facts.items()}
    needed = needed_pairs(plan, network)
    pairs = needed | possible_pairs(plan, network)
    names = sorted({to for _, to in pairs})
    candidates = {n: (given[n],) if n in given else hosts.facts[n].addresses for n in names}
    ports = listen(candidates, hosts)
    seen = dial_out(pairs, ports, hosts)
    hosts.stop_listening()
    chosen = {n: _choose(n, candidates[n], ports[n], (needed, pairs), seen, n in given) for n in names}
    placed = [dataclasses.replace(h, address=chosen.get(h.name, h.address)) for h in plan.hosts]
    return dataclasses.replace(plan, hosts=tuple(_with_reach(h, placed, network, seen) for h in placed))


def _with_reach(
    host: HostPlan, hosts: Sequence[HostPlan], network: Mapping[str, str], seen: Mapping[tuple[str, str, str], Any]
) -> HostPlan:
    """The host, with `reaches` set to the hosts that it could dial and those of its own network."""

    def is_reached(other: HostPlan) -> bool:
        one_network = network[host.name] == network[other.name]
        return one_network or seen.get((host.name, other.name, other.address), "not tried") is None

    others = (h for h in hosts if h is not host and h.address)
    return dataclasses.replace(host, reaches=tuple(h.name for h in others if is_reached(h)))


def possible_pairs(plan: Plan, network: Mapping[str, str]) -> Pairs:
    """Pairs of hosts for which a direct connection is better, but not needed.

    Hosts with actors should reach each other, else their messages go through the launching machine. The launching
    machine should reach them, else it uses ssh. If code adds meshes, or a restart may use other hosts, all hosts
    should reach each other.
    """
    actors = {h.name for h in messengers(plan)}
    here = {h.name for h in plan.hosts if h.local}
    pairs = {(a, b) for a in actors for b in actors - here}
    if plan.may_grow or any(m.restart.max and not isinstance(m.unit.hosts, tuple) for m in plan.meshes):
        hosts = [h.name for h in plan.hosts if h.slots != 0]
        pairs |= {(a, b) for a in hosts for b in hosts}
    return {(a, b) for a, b in pairs if network[a] != network[b]}


def needed_pairs(plan: Plan, network: Mapping[str, str]) -> Pairs:
    """Pairs of hosts that have to reach each other: those of one mesh."""
    return {(a, b) for m in plan.meshes for a in m.hosts for b in m.hosts if network[a] != network[b]}


def listen(candidates: Mapping[str, Sequence[str]], hosts: Hosts) -> dict[str, dict[str, int]]:
    """Make hosts listen at their candidate addresses for a moment: host → address → port. Raises ForgeError."""

    def ask(name: str) -> dict[str, int]:
        connection = hosts.connections.get(name)
        if connection is None:
            listeners, ports = reach.listen_on(candidates[name])
            hosts.listeners += listeners
            return ports
        answer = connection.ask_for(Listening, ListenOn(tuple(candidates[name])))
        if not (answer.ports.keys() <= set(candidates[name]) and all(0 < p < 1 << 16 for p in answer.ports.values())):
            raise connection.out_of_step("it listens where nobody asked it to")
        return answer.ports

    found, errors = for_all({name: (lambda name=name: ask(name)) for name in candidates}, hosts)  # type: ignore[misc]
    if errors:
        raise combined_error(errors)
    return found


def dial_out(
    pairs: Pairs, ports: Mapping[str, Mapping[str, int]], hosts: Hosts
) -> dict[tuple[str, str, str], str | None]:
    """(from, to, address) → why it was not reached there; None where it was. Raises ForgeError."""

    def ask(name: str) -> dict[str, str | None]:
        there = [to for start, to in sorted(pairs) if start == name]
        targets = tuple(DialTarget(f"{to} {a}", a, port) for to in there for a, port in ports[to].items())
        connection = hosts.connections.get(name)
        if connection is None:
            return reach.dial_all(targets)
        results = connection.ask_for(Dialled, DialOut(targets)).results
        if not results.keys() <= {t.key for t in targets}:
            raise connection.out_of_step("it dialled what nobody asked it to")
        return results

    starts = sorted({start for start, _ in pairs})
    found, errors = for_all({name: (lambda name=name: ask(name)) for name in starts}, hosts)  # type: ignore[misc]
    if errors:
        raise combined_error(errors)
    return {(s, *_split(key)): why for s, results in found.items() for key, why in results.items()}


def _split(key: str) -> tuple[str, str]:
    to, _, address = key.partition(" ")
    return to, address


def _choose(
    name: str,
    candidates: Sequence[str],
    ports: Mapping[str, int],
    needed_and_all: tuple[Pairs, Pairs],
    seen: Mapping[tuple[str, str, str], str | None],
    given: bool,
) -> str:
    """The address at which all hosts that need the host reach it, and among those the one that most others reach.

    "" if no host needs it and no address works; raises UnreachableError if some host needs it.
    """
    needed, pairs = needed_and_all
    starts = [start for start, to in sorted(needed) if to == name]
    good: list[tuple[int, str]] = []
    complaints: list[str] = []
    for address in candidates:
        if address not in ports:
            complaints.append(f"{address} is not an address of {name}")
            continue
        failed = [(s, why) for s in starts if (why := seen.get((s, name, address), "not tried"))]
        if not failed:
            missed = sum((s, name, address) in seen and bool(seen[s, name, address]) for s, to in pairs if to == name)
            good.append((missed, address))
        complaints += [f"{s} does not reach it at {address}: {why}" for s, why in failed[:3]]
    if good:
        return min(good, key=lambda g: g[0])[1]
    if not starts:
        return ""  # nobody has to reach it
    hint = f"`address:` of host {name} says where other hosts reach it"
    if given:
        hint += "; without it forgectl looks for one"
    what = "; ".join(complaints[:6]) or "it has no address but loopback"
    message = f"host {name} cannot take part with others: {what}"
    raise UnreachableError(message, hint=f"{hint}. Is a firewall in between?")
