"""Actors on the lab's hosts: over its real network, with its firewalls and cut cables."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.far import FarActors, Start, Worker
from tests.lab.lab import Lab

pytest.importorskip("monarch")


@pytest.fixture
def far(lab: Lab) -> Iterator[FarActors]:
    folder = Path(tempfile.mkdtemp(prefix="forge-"))
    far = FarActors(folder)
    yield far
    far.close()
    shutil.rmtree(folder)


def start_on(lab: Lab, host: str) -> Start:
    pipe = subprocess.PIPE
    return lambda argv: lab.popen(host, argv, stdin=pipe, stdout=pipe)


def workers(far: FarActors, lab: Lab) -> list[Worker]:
    """One on each host."""
    found = []
    for host in lab.names:
        folder = lab.run(host, ["mktemp", "-d"]).stdout.strip()
        found.append(far.worker(lab.address(host), start_on(lab, host), folder))
    return found


def test_a_driver_calls_ranks_on_three_hosts(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    found = driver.ask("spawn", "m", [w.url for w in away])
    assert [host for _, host, _ in found] == lab.names
    near = driver.ask("spawn", "near", [None])
    assert driver.ask("call", "m", "ask", "near") == [near] * 3


def test_a_driver_that_cannot_be_dialled_back_goes_through_a_host(far: FarActors, lab: Lab) -> None:
    for host in lab.names:
        lab.drop(host, "out", lab.launcher, dials=True)
    away = workers(far, lab)
    driver = far.driver(gateway=away[0].url)
    found = driver.ask("spawn", "m", [w.url for w in away])
    assert [host for _, host, _ in found] == lab.names
    near = driver.ask("spawn", "near", [None])
    assert driver.ask("call", "m", "ask", "near") == [near] * 3
    assert driver.ask("call", "near", "ask", "m") == [found]
    assert driver.answer(driver.begin("call", "m", "first_raises"))["error"] == "LookupError"


def test_a_call_outlasts_a_cut_link(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    found = driver.ask("spawn", "m", [w.url for w in away])
    lab.cut("host2")
    everywhere, beyond = driver.begin("call", "m", "where"), driver.begin("slice", "m", 1)
    assert driver.ask("slice", "m", 2) == [found[2]]
    lab.mend("host2")
    assert driver.answer(everywhere)["value"] == found
    assert driver.answer(beyond)["value"] == [found[1]]


def test_a_host_that_is_gone_keeps_nothing_else_from_working(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    found = driver.ask("spawn", "m", [w.url for w in away])
    lab.cut("host2")
    assert driver.ask("slice", "m", 0) == [found[0]]
    again = driver.ask("spawn", "m", [away[0].url, away[2].url, away[2].url])
    assert [host for _, host, _ in again] == ["host1", "host3", "host3"]
    lab.mend("host2")


def test_ranks_hear_of_a_host_that_is_gone(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    driver.ask("spawn", "asking", [away[0].url])
    driver.ask("spawn", "asked", [away[1].url])
    lab.cut("host2")
    waiting = driver.begin("call", "asking", "ask", "asked")
    driver.ask("end", "asked", "host2 is lost")
    assert driver.answer(waiting)["error"] == "ActorDied"
    lab.mend("host2")
