"""Random kills on both sides of ssh: a scene like those of chaos.py, on the hosts of the lab."""

from __future__ import annotations

import functools
import json
import random
import time
from typing import Any

import psutil

from tests.conftest import until
from tests.faults.chaos import FOR_EVER, KILLS, Victims, judge
from tests.faults.history import Hit
from tests.process.deaths import controller_of
from tests.ssh.conftest import Far

HOSTS = ("host1", "host2")
MESHES = f"""lease: 15s
scripts: {{stay: {{run: stay.py, procs: 4, hosts: 2, preload: []{FOR_EVER}}}}}
actors: {{counter: {{class: far_players:Counter, procs: 2, hosts: 2, preload: []{FOR_EVER}}}}}
"""
LINKS = ("ssh", "sshd", "controller")
"""Whose death costs no rank."""
ROLES = (*LINKS, "messenger", "agent", "forkserver", "rank")


def role_of(command: str) -> str:
    words = command.split()
    return words[2] if len(words) > 2 and words[1].endswith("boot.py") else "rank"


def whole(far: Far, run: str) -> dict[str, tuple[int, list[tuple[str, int]]]]:
    """Mesh → its generation, and the host and pid of each rank, once all is up and nothing else runs on the hosts."""
    seen: list[Any] = []

    def look() -> dict[str, tuple[int, list[tuple[str, int]]]] | None:
        document = far.forge.glance(run)
        seen[:] = [[(m["mesh"], m["state"], m["ready"]) for m in document["meshes"]], document["hosts"]]
        if any(m["ready"] < m["desired"] or m["state"] not in ("running", "ready") for m in document["meshes"]):
            return None
        if any(h["state"] != "up" for h in document["hosts"]):
            return None
        meshes = {m["mesh"]: (m["generation"], [(r["host"], r["pid"]) for r in m["ranks"]]) for m in document["meshes"]}
        planned = {place for _, places in meshes.values() for place in places if place[0] in HOSTS}
        found = {(h, pid, role_of(c)) for h, processes in far.processes(run).items() for pid, c in processes.items()}
        seen.append(found)
        alone = all(sum(h == host and r == role for h, _, r in found) == 1 for host in HOSTS for role in ("agent",))
        return meshes if alone and {(h, pid) for h, pid, role in found if role == "rank"} == planned else None

    try:
        result: dict[str, tuple[int, list[tuple[str, int]]]] = until(look, f"{run} to be whole")
    except BaseException as e:
        raise AssertionError(f"{run} is not whole: {seen}") from e
    return result


def victim_of(far: Far, run: str, role: str, chance: random.Random) -> tuple[str, int] | None:
    """Host ("" for here) and pid of a random process of that role."""
    host = chance.choice(HOSTS)
    if role == "controller":
        return "", controller_of(far.forge, run)
    if role == "ssh":
        links = psutil.Process(controller_of(far.forge, run)).children()
        pids = [p.pid for p in links if p.name() == "ssh"]
        return ("", chance.choice(pids)) if pids else None
    if role == "sshd":
        found = list(far.lab.sshd_sessions(host))
    else:
        found = [pid for pid, command in far.processes(run).get(host, {}).items() if role_of(command) == role]
    return (host, chance.choice(found)) if found else None


def reaching(far: Far, chance: random.Random) -> list[Hit]:
    """A mesh and actors on two ssh hosts, of which parts on either side are killed."""
    victims = Victims(far.forge, chance)
    run = far.launch(MESHES, *HOSTS)
    before = whole(far, run)
    for _ in range(KILLS // 2):
        time.sleep(chance.uniform(0, 0.3))  # the moment is what is tested
        role = chance.choice(ROLES)
        if (found := victim_of(far, run, role, chance)) is None:
            continue
        host, pid = found
        if host:
            victims.hits.append(Hit(role, pid, host))
            far.lab.kill(host, pid)
        else:
            victims.kill(role, pid)
        if role not in LINKS:
            until(functools.partial(moved, far, run, before), f"the death of {role}")
        after = whole(far, run)
        assert role not in LINKS or after == before, f"the death of {role} cost ranks: {before} {after}"
        assert json.loads(far.forge.ok("call", f"{run}/counter", "where", "--json")) == list(HOSTS)
        before = whole(far, run)
    far.forge.ok("shutdown", "--run", run)
    assert far.forge.until_ended(run)["state"] == "stopped"
    assert not far.processes(run)
    judge(far.forge, run, victims.hits)
    return victims.hits


def moved(far: Far, run: str, before: dict[str, tuple[int, list[tuple[str, int]]]]) -> bool:
    """Whether any mesh is in another generation than before."""
    return any(m["generation"] > before[m["mesh"]][0] for m in far.forge.glance(run)["meshes"])
