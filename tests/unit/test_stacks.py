"""Where ranks are, and the verdict over what they recorded."""

from __future__ import annotations

import dataclasses

from forgectl.stacks import reading, recorder
from forgectl.stacks.diagnosis import diagnose
from forgectl.stacks.evidence import Collective, Frame, Group, RankEvidence, ThreadStack
from forgectl.stacks.places import fold, where

TORCH = "/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
WORLD = Group("0", "default_pg", (0, 1, 2))
PAIR = Group("1", "pair", (0, 1))


def at(
    operation: str, number: int, *, group: Group = WORLD, shape: int = 4, age: float = 60.0, pending: bool = True
) -> Collective:
    return Collective(group.name, group.description, "gloo", number, operation, ((shape,),), ("Float",), pending, age)


def rank(number: int, *entered: Collective, line: int = 0) -> RankEvidence:
    frames = (
        (Frame("data.py", line, "read"),) if line else (Frame(TORCH, 9, "all_reduce"), Frame("train.py", 7, "step"))
    )
    threads = (ThreadStack("MainThread", frames),)
    return RankEvidence(
        number, "local", "seen", threads=threads, groups=(WORLD, PAIR), recorded=True, collectives=entered
    )


def done(number: int) -> Collective:
    return at("all_reduce", number, pending=False)


def test_places_name_the_users_line_first() -> None:
    seen = [rank(0), rank(1, line=41), rank(2)]
    assert fold(seen) == [((0, 2), "at all_reduce (train.py:7)"), ((1,), "at data.py:41 (read)")]
    assert where(RankEvidence(3, "local", "stopped", detail="stopped by a signal")) == "stopped by a signal"


def test_who_never_entered_is_named_with_its_line() -> None:
    found = diagnose(
        [rank(0, done(5), at("all_reduce", 6)), rank(1, done(5), line=41), rank(2, done(5), at("all_reduce", 6))]
    )
    assert (found.kind, found.suspects, found.waiting, found.sequence) == ("missing", (1,), (0, 2), 6)
    assert found.text == (
        "2 of 3 wait in all_reduce #6 of default_pg for 60 s; rank 1 never entered it: it is at data.py:41 (read)"
    )


def test_the_odd_one_of_a_mismatch_is_named_only_by_a_majority() -> None:
    three = [rank(0, at("all_reduce", 6)), rank(1, at("broadcast", 6)), rank(2, at("all_reduce", 6))]
    assert (diagnose(three).kind, diagnose(three).suspects) == ("mismatch", (1,))
    shapes = [rank(0, at("all_reduce", 6)), rank(1, at("all_reduce", 6, shape=8)), rank(2, at("all_reduce", 6))]
    assert (diagnose(shapes).kind, diagnose(shapes).suspects) == ("mismatch", (1,))
    two = [dataclasses.replace(r, groups=(Group("0", "default_pg", (0, 1)),)) for r in three[:2]]
    assert (diagnose(two).kind, diagnose(two).suspects) == ("mismatch", ())


def test_ranks_that_wait_for_each_other_in_two_groups_are_not_accused() -> None:
    found = diagnose(
        [rank(0, at("all_reduce", 6)), rank(1, done(5), at("all_reduce", 1, group=PAIR)), rank(2, at("all_reduce", 6))]
    )
    assert (found.kind, found.suspects) == ("each_other", ())


def test_a_rank_that_takes_the_default_group_for_a_subgroup_is_named() -> None:
    """Rank 2 is not in the subgroup, and rightly went on to what comes after it."""
    pair = at("all_reduce", 1, group=PAIR)
    found = diagnose([rank(0, pair), rank(1, at("barrier", 6)), rank(2, at("all_reduce", 6))])
    assert (found.kind, found.suspects, found.waiting, found.group) == ("missing", (1,), (0,), "pair")
    assert found.text.splitlines()[0] == (
        "1 of 2 waits in all_reduce #1 of pair for 60 s; rank 1 does not: it entered barrier #6 of default_pg for 60 s"
        " instead, it is at all_reduce (train.py:7)"
    )


def test_a_rank_that_keeps_a_subgroup_waiting_is_named() -> None:
    found = diagnose(
        [rank(0, done(5), at("all_reduce", 1, group=PAIR)), rank(1, done(5), line=41), rank(2, at("all_reduce", 6))]
    )
    assert found.suspects == (1,)


def test_the_stopped_and_the_ended_are_named_and_the_unreachable_are_not() -> None:
    waiting = [rank(0, at("all_reduce", 6)), rank(1, at("all_reduce", 6))]
    assert diagnose([*waiting, RankEvidence(2, "local", "stopped", detail="stopped")]).suspects == (2,)
    assert diagnose([*waiting, RankEvidence(2, "local", "ended", detail="ended with exit code 0")]).suspects == (2,)
    gone = diagnose([waiting[0], RankEvidence(1, "b", "unreachable"), RankEvidence(2, "b", "unreachable")])
    assert (gone.kind, gone.suspects) == ("unknown", ())


def test_a_run_that_goes_on_accuses_nobody() -> None:
    assert diagnose([rank(0, at("all_reduce", 6, age=0.01)), rank(1, done(5), line=41), rank(2)]).kind == "nothing"
    assert diagnose([rank(n, at("all_reduce", 6)) for n in range(3)]).kind == "all_in"


def test_a_recorder_is_read_from_the_last_group_of_a_name() -> None:
    entry = {
        "process_group": ["0", "default_pg"], "profiling_name": "gloo:all_reduce", "is_p2p": False, "p2p_seq_id": 0,
        "input_sizes": [[4]], "input_dtypes": ["Float"], "state": "scheduled", "retired": True, "time_created_ns": 0,
    }  # fmt: skip
    entries = [{**entry, "collective_seq_id": n} for n in (*range(1, 40), *range(1, 4))]
    assert [c.sequence for c in recorder.read({"entries": entries}, 1.0)] == [1, 2, 3]


def test_a_dump_of_faulthandler_is_read_without_our_frames() -> None:
    text = (
        'Thread 0x01 (most recent call first):\n  File "/w/a.py", line 3 in work\n\n'
        'Current thread 0x02 (most recent call first):\n  File "/w/b.py", line 4 in bad\n'
        '  File "/x/forgectl/boot.py", line 9 in <module>\n'
    )
    main, other = reading.of_faulthandler(text, "/w", "/x/forgectl/")
    assert (main.name, main.frames) == ("MainThread", (Frame("b.py", 4, "bad"),))
    assert other.frames == (Frame("a.py", 3, "work"),)
    assert reading.is_whole(text)
