"""Whether the history of a run holds together, and whether its failures have the causes that a test gave them. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
"""As `forgectl events --json` prints them."""
ONCE_A_GENERATION = ("mesh_starting", "mesh_up", "mesh_failing", "mesh_restarted")
ONCE_A_RUN = ("run_started", "run_up", "run_stopping", "run_ended")


@dataclass(frozen=True)
class Hit:
    """A process that a test has killed: its part in the run, its pid on its host, and the host."""

    role: str
    pid: int
    host: str = "local"


def faults(events: Sequence[Event], *, ended: bool, replaced: int | None = None) -> list[str]:
    """What is lost, doubled or out of order in all the events of a run.

    `ended`: whether the run has; `replaced`: how many controllers took over, if that is known.
    """
    return list(_faults(events, ended, replaced))


def _faults(events: Sequence[Event], ended: bool, replaced: int | None) -> Iterator[str]:
    numbers = [e["seq"] for e in events]
    if numbers != list(range(1, len(events) + 1)):
        yield f"numbers: {numbers}"
    names = Counter(e["event"] for e in events)
    for name in ONCE_A_RUN:
        if names[name] > 1:
            yield f"{names[name]} × {name}"
    told = [e["event"] for e in events if e["event"] != "hook_failed"]
    if names["run_ended"] != ended or (ended and told[-1] != "run_ended"):
        yield "the run's end is lost, or is not the last event"
    if replaced is not None and names["controller_replaced"] != replaced:
        yield f"{names['controller_replaced']} controllers took over, not {replaced}"
    for mesh in dict.fromkeys(e["mesh"] for e in events if e.get("mesh")):
        lost = [e["seq"] for e in events if e["event"] == "host_lost"]
        yield from _faults_of_mesh(mesh, [e for e in events if e.get("mesh") == mesh], lost, ended)


def _faults_of_mesh(mesh: str, events: Sequence[Event], lost: Sequence[int], ended: bool) -> Iterator[str]:
    by_generation: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("generation") is not None:
            by_generation[event["generation"]].append(event)
    begun = [e["generation"] for e in events if e["event"] == "mesh_starting"]
    if begun != list(range(len(begun))):
        yield f"{mesh}: generations began as {begun}"
    for generation, of in by_generation.items():
        names = Counter(e["event"] for e in of)
        for name in ONCE_A_GENERATION:
            if names[name] > 1:
                yield f"{mesh}, generation {generation}: {names[name]} × {name}"
        started = Counter(e["rank"] for e in of if e["event"] == "rank_started")
        exited = Counter(e["rank"] for e in of if e["event"] == "rank_exited")
        if doubled := [rank for rank, count in (started + exited).items() if max(started[rank], exited[rank]) > 1]:
            yield f"{mesh}, generation {generation}: ranks {doubled} started or exited twice"
        if never := exited.keys() - started.keys():
            yield f"{mesh}, generation {generation}: ranks {sorted(never)} exited and never started"
        first, last = of[0]["seq"], max(e["seq"] for e in of)
        over = ended or generation < max(by_generation)
        told = any(first < number <= last for number in lost) or any(e["event"] == "mesh_failed" for e in of)
        if over and not told and (missing := started.keys() - exited.keys()):
            yield f"{mesh}, generation {generation}: nothing says how ranks {sorted(missing)} ended"


def wrong_causes(events: Iterable[Event], hits: Sequence[Hit]) -> list[str]:
    """The failures that no hit explains, and the hits of ranks after which the rank's generation did not fail."""
    events = list(events)
    born = {(e["host"], e["pid"]): e for e in events if e["event"] == "rank_started"}
    failing = [e for e in events if e["event"] == "mesh_failing"]
    found = [f"nothing explains: {e['message']}" for e in failing if not any(_explains(h, e, born) for h in hits)]
    over = {(e["mesh"], e["generation"]) for e in failing}
    ending = {e["mesh"] for e in events if e["event"] == "mesh_stopping"}
    for hit in hits:
        start = born.get((hit.host, hit.pid))
        if hit.role == "rank" and start:
            place = start["mesh"], start["generation"]
            asked = any(e["event"] == "mesh_restarted" and (e["mesh"], e["generation"]) == place for e in events)
            if place not in over and start["mesh"] not in ending and not asked:
                found.append(f"the death of {place[0]}/{start['rank']}, generation {place[1]}, is not in the history")
    return found


def _explains(hit: Hit, failing: Event, born: Mapping[tuple[str, int], Event]) -> bool:
    failure = failing["failure"]
    if hit.role == "forkserver" and "the fork server ended by signal 9" in failure["message"]:
        return True
    if hit.role in ("rank", "forkserver"):  # a rank that has just been forked has the command line of its fork server
        start = born.get((hit.host, hit.pid))
        if start is None:  # killed before anybody knew it; a fork server's death was told above
            return hit.role == "rank" and failure["host"] in (hit.host, None) and failure["signal"] == 9
        same = all(start[key] == failing[key] for key in ("mesh", "generation"))
        return same and (failure["kind"], failure["rank"], failure["signal"]) == ("signal", start["rank"], 9)
    if hit.role == "messenger":
        return f"the messenger on host {hit.host}: it ended by signal 9" in failure["message"]
    if hit.role == "agent":
        return failure["kind"] in ("host_lost", "not_started") and "agent" in failure["message"]
    return False
