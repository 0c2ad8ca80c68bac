"""Examines all hosts of a spec at once, even if some cannot be reached, and which of them reach each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forgectl.errors import ForgeError
from forgectl.hosts.examination import PYTHON_SECONDS, examine
from forgectl.protocol.host_survey import Examination, Examine
from forgectl.transport.addresses import Pairs, dial_out, listen
from forgectl.transport.ssh import ANSWER_SECONDS, dial
from forgectl.transport.survey import Hosts, Slow, destination, for_all

if TYPE_CHECKING:
    from forgectl.spec.model import Host

Reach = dict[tuple[str, str], dict[str, str | None]]
"""(from, to) → each address of `to` → why it was not reached there, None where it was."""


@dataclass(frozen=True)
class Examined:
    """A host as it was found. Its clock is `ahead` seconds ahead of ours, with an error of at most `within` seconds."""

    found: Examination
    ahead: float = 0.0
    within: float = 0.0


def examine_all(
    spec_hosts: Sequence[Host], requests: Mapping[str, Examine], hosts: Hosts, slow: Slow | None = None
) -> tuple[dict[str, Examined], dict[str, ForgeError]]:
    """By host, what was found and why other hosts could not be asked; connections are kept in `hosts`."""

    def job(host: Host) -> Callable[[], Examined]:
        return lambda: _here(requests[host.name]) if host.local else _there(host, requests[host.name], hosts)

    return for_all({host.name: job(host) for host in spec_hosts}, hosts, slow)


def _here(request: Examine) -> Examined:
    return Examined(examine(Path(f"/var/tmp/forgectl-{os.getuid()}"), request))


def _there(host: Host, request: Examine, hosts: Hosts) -> Examined:
    connection = hosts.connections[host.name] = dial(destination(host), started=hosts.note)
    asked = time.time()
    found = connection.ask_for(Examination, request, ANSWER_SECONDS + PYTHON_SECONDS * len(request.pythons))
    answered = time.time()
    return Examined(found, *clock(asked, found.received, found.answered, answered))


def clock(asked: float, received: float, replied: float, answered: float) -> tuple[float, float]:
    """The seconds by which the other clock is ahead, and the largest error of that; computed as NTP does it.

    `asked` and `answered` are by our clock, `received` and `replied` by the other one.
    """
    ahead = ((received - asked) + (replied - answered)) / 2
    return ahead, max(0.0, ((answered - asked) - (replied - received)) / 2)


def reach_each_other(pairs: Pairs, examined: Mapping[str, Examined], given: Mapping[str, str], hosts: Hosts) -> Reach:
    """Dial all pairs of hosts at every address. `given`: host → its `address:` in the spec. Raises ForgeError."""
    names = sorted({to for _, to in pairs})
    candidates = {n: (given[n],) if n in given else examined[n].found.facts.addresses for n in names}
    seen = dial_out(pairs, listen(candidates, hosts), hosts)
    hosts.stop_listening()
    return {
        (start, to): {a: seen.get((start, to, a), f"it is not an address of {to}") for a in candidates[to]}
        for start, to in pairs
    }


def pairs_of(networks: Mapping[str, str], ssh: Collection[str]) -> Pairs:
    """All pairs of ssh hosts that do not share a network. This machine is left out: hosts need not reach it."""
    return {(a, b) for a in ssh for b in ssh if a != b and networks[a] != networks[b]}
