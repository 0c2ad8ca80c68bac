"""What is recorded and kept of a mesh that hangs, or has not answered a call."""

from __future__ import annotations

import dataclasses
import json

import pytest

from forgectl.controller.hangs import describe_hang, describe_late, incident_of
from forgectl.protocol.supervision import ProgressResumed, ProgressStopped
from forgectl.stacks.evidence import RankEvidence
from tests.unit.controller.test_state import History, mesh
from tests.unit.test_stacks import at, done, rank

WAITING = [rank(0, done(5), at("all_reduce", 6)), rank(1, done(5), line=41), rank(2, done(5), at("all_reduce", 6))]
ALONE = [rank(0, line=3), rank(1, line=41), rank(2, line=3)]


def hung(*ranks: int, hosts: tuple[str, ...] = ("a",), procs: int = 3) -> History:
    h = History(mesh(procs=procs, hosts=hosts), hosts=hosts)
    h.start()
    h.happen(ProgressStopped("m", 0, ranks, 600.4), "a")
    return h


def test_the_record_of_a_hang_has_the_verdict_and_its_suspects() -> None:
    found = describe_hang(hung(0, 1, 2).mesh(), WAITING)
    assert found is not None
    [line] = found.verdict
    assert line.startswith(
        "2 of 3 wait in all_reduce #6 of default_pg for 60 s; rank 1 never entered it: it is at data"
    )
    assert (found.message, found.suspects) == (f"no progress for 10m: {line}", (1,))


def test_a_rank_that_hangs_alone_is_named_with_its_place() -> None:
    found = describe_hang(hung(1).mesh(), ALONE)
    assert found is not None
    assert (found.message, found.suspects) == ("no progress for 10m: [1] at data.py:41 (read)", (1,))


@pytest.mark.parametrize(("ranks", "hosts", "procs"), [((0, 1, 2), ("a",), 3), ((0, 1), ("a", "b"), 4)])
def test_ranks_that_may_all_hang_are_not_accused(ranks: tuple[int, ...], hosts: tuple[str, ...], procs: int) -> None:
    """Not even where only one host has reported its own so far."""
    found = describe_hang(hung(*ranks, hosts=hosts, procs=procs).mesh(), ALONE)
    assert found is not None
    assert found.suspects == ()


def test_what_has_gone_on_meanwhile_is_not_recorded() -> None:
    h = hung(0)
    h.happen(ProgressResumed("m", 0))
    assert describe_hang(h.mesh(), WAITING) is None


def test_a_call_without_an_answer_is_recorded_with_the_places_of_all_ranks() -> None:
    found = describe_late("m.add has not answered within 5 s", hung(0).mesh(), ALONE)
    assert found.call
    assert found.message == "m.add has not answered within 5 s: [0,2] at data.py:3 (read) · [1] at data.py:41 (read)"


def test_an_incident_has_equal_stacks_once_and_those_of_suspects_first() -> None:
    many = [dataclasses.replace(WAITING[0], rank=n) for n in range(64) if n != 7]
    ranks = [*many, RankEvidence(7, "local", "stopped", detail="stopped by a signal (SIGSTOP)")]
    record = describe_late("late", hung(0).mesh(), ranks)
    incident = incident_of(dataclasses.replace(record, suspects=(7,)), ranks)
    assert [stack["ranks"] for stack in incident["stacks"]] == ["7", "0-6,8-63"]
    assert incident["stacks"][1]["threads"][0]["frames"][1] == {"file": "train.py", "line": 7, "function": "step"}
    assert len(json.dumps(incident)) < 5000
