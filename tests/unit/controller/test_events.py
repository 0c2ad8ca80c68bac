"""Events follow from records: what users see of histories of the real state machine, and how an account tells them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from forgectl.controller import journal
from forgectl.controller.account import Account, account_json, account_of
from forgectl.controller.events import Events
from forgectl.controller.records import (
    AgentLost,
    AgentUp,
    Born,
    HookBegun,
    HookEnded,
    Record,
    RestartAsked,
    StopAsked,
    TimeUp,
)
from forgectl.controller.repetition import SOON
from forgectl.controller.run_dir import RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.status_document import run_document
from forgectl.model.event import RunEvent, event_json, ranges
from forgectl.model.plan import RestartPolicy
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import Prepared, ProgressResumed, ProgressStopped, RankExited, StartFailed
from tests.unit.controller.test_state import FOUND, History, hang, mesh

TRACE = "Traceback (most recent call last):\nValueError: bad\n"
RAISES: Any = {"error": "ValueError: bad", "traceback": TRACE}


def told(h: History) -> list[RunEvent]:
    """The events of a history."""
    run = Run.new(h.run.id, h.run.plan)
    events = Events(run)
    found: list[RunEvent] = []
    for when, record in h.records:
        run.apply(when, record)
        found += events.after(record, when, when - 900.0)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    return found


def names(h: History, *, ranks: bool = False) -> list[str]:
    return [e.event for e in told(h) if ranks or not e.event.startswith("rank_")]


def account(h: History, **of: object) -> Account:
    return account_of(run_document(h.run, RunDir(Path("/r"))), told(h), **of)  # type: ignore[arg-type]


def born(h: History) -> History:
    h.record(Born(77))
    return h


# ------------------------------------------------------------ events


def test_a_run_that_succeeds() -> None:
    h = born(History(mesh()))
    h.start()
    h.exit(0)
    h.exit(1)
    h.gone()
    assert names(h) == ["host_up", "run_started", "mesh_starting", "mesh_up", "run_up", "mesh_ended", "run_ended"]
    assert [e.message for e in told(h) if e.event == "rank_exited"] == [
        "rank 0 on a exited with code 0",
        "rank 1 on a exited with code 0",
    ]
    last = told(h)[-1]
    assert (last.state, last.exit_code, last.by) == ("succeeded", 0, "the end of its scripts")
    assert last.monotonic == last.time - 900.0
    assert account(h).kind == "succeeded"


def test_nothing_is_said_after_the_end_of_a_run() -> None:
    h = born(History(mesh()))
    h.start()
    h.record(StopAsked(None, 1.0, "forgectl shutdown"))
    h.record(AgentLost("a", "the agent on host a was killed"))
    assert names(h)[-1] == "run_ended"
    h.record(AgentUp("a", 78, "boot"))  # it sweeps the host
    h.record(Born(79, adopted=True))
    assert names(h)[-1] == "run_ended"


def test_an_agent_that_was_replaced_was_lost_though_no_controller_lived_to_record_it() -> None:
    h = born(History(mesh(restart=RestartPolicy(1))))
    h.start()
    [first] = [r for _, r in h.records if isinstance(r, AgentUp)]
    h.record(Born(78, adopted=True))
    h.record(first)
    h.record(AgentUp("a", first.pid + 1, first.boot_id))
    events = [e for e in told(h) if not e.event.startswith("rank_")][-5:]
    assert [e.event for e in events] == ["host_up", "host_lost", "host_up", "mesh_failing", "mesh_restarted"]
    assert "the agent on host a was replaced" in [e.message for e in events]


def test_a_generation_whose_agent_is_lost_before_it_could_begin_has_begun_all_the_same() -> None:
    h = born(History(mesh(procs=1, restart=RestartPolicy(2))))
    h.start()
    h.record(AgentLost("a", "the agent on host a was killed"))
    h.record(AgentUp("a", 998, "boot"))
    h.record(AgentLost("a", "the agent on host a was killed"))
    h.record(AgentUp("a", 999, "boot"))
    h.record(AgentLost("a", "the agent on host a was killed"))
    told_of = [(e.event, e.generation) for e in told(h) if e.event.startswith("mesh_")]
    assert told_of == [
        *(("mesh_starting", 0), ("mesh_up", 0), ("mesh_failing", 0), ("mesh_restarted", 0)),
        *(("mesh_starting", 1), ("mesh_failing", 1), ("mesh_restarted", 1)),
        *(("mesh_starting", 2), ("mesh_failing", 2), ("mesh_failed", 2)),
    ]
    [waited] = [e for e in told(h) if e.event == "mesh_starting" and e.generation == 1]
    assert (waited.message, waited.state) == ("generation 1 waited for its hosts", "restarting")
    policies = [(e.event, e.failure.policy) for e in told(h) if e.failure]
    assert policies == [
        *(("mesh_failing", "restart 1 of 2 at once"), ("mesh_restarted", "restart 1 of 2 at once")),
        *(("mesh_failing", "restart 2 of 2 after 1 s"), ("mesh_restarted", "restart 2 of 2 after 1 s")),
        *(("mesh_failing", "gave up: restarted 2 of 2 times"), ("mesh_failed", "gave up: restarted 2 of 2 times")),
    ]


def test_a_generation_that_is_ending_does_not_begin_again() -> None:
    """Its second host is lost, or it is asked to restart, while the first one is awaited."""
    for hosts in ("a", "b"), ("b", "a"):
        h = born(History(mesh(hosts=("a", "b"), restart=RestartPolicy(2)), hosts=("a", "b")))
        h.start()
        for host in hosts:
            h.record(AgentLost(host, f"the agent on host {host} was killed"))
        assert [e.generation for e in told(h) if e.event == "mesh_starting"] == [0]
    h = born(History(mesh(restart=RestartPolicy(2))))
    h.start()
    h.record(RestartAsked({"m": 0}, 1.0, "forgectl restart"))
    h.record(AgentLost("a", "the agent on host a was killed"))
    assert [e.generation for e in told(h) if e.event == "mesh_starting"] == [0]


def test_a_failure_is_told_when_it_is_noticed_and_when_it_is_over() -> None:
    h = History(mesh(procs=4, restart=RestartPolicy(1)))
    h.start()
    h.exit(0, 1, error="RuntimeError: peer", failed_ago=0.0)
    h.exit(2, 1, **RAISES, failed_ago=5.0)  # failed before rank 0, reported later
    h.exit(1, None, 15, asked=True)
    h.exit(3, 1, error="RuntimeError: peer", failed_ago=0.0)
    h.gone()
    h.start()
    h.exit(1, 3)
    h.gone()
    assert names(h) == [
        *("host_up", "mesh_starting", "mesh_up", "run_up"),
        *("mesh_failing", "mesh_restarted", "mesh_starting", "mesh_up"),
        *("mesh_failing", "mesh_failed", "run_ended"),
    ]
    first, restarted, second, failed = (e for e in told(h) if e.failure)
    assert first.failure and restarted.failure and second.failure and failed.failure
    assert (first.rank, first.failure.policy) == (0, "restart 1 of 1 at once")
    assert first.failure.message == "rank 0 on a exited with code 1: RuntimeError: peer"
    assert (restarted.failure.rank, restarted.failure.kind, restarted.failure.traceback) == (2, "exception", TRACE)
    assert [(f.ranks, f.count, f.how) for f in restarted.failure.fell] == [
        ("0,3", 2, "exited with code 1: RuntimeError: peer"),
        ("1", 1, "ended by forgectl"),
    ]
    assert restarted.failure.log == "logs/m/0/rank-2.log"
    assert (second.failure.kind, second.failure.exit_code) == ("exit", 3)
    assert failed.failure.policy == "gave up: restarted 1 of 1 times"
    assert (restarted.hook, failed.hook, first.hook) == ("restarted", "failed", None)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"exit_code": 3}, "exit"),
        ({"signal": 11}, "signal"),
        ({"signal": 9, "oom": "the kernel log says: Killed process"}, "out_of_memory"),
        ({"exit_code": 1, "error": "torch.OutOfMemoryError: CUDA out of memory."}, "out_of_memory"),
        ({"exit_code": 1, "error": "ValueError: x"}, "exception"),
        ({"signal": 9, "error": "the fork server was killed, and its ranks with it"}, "signal"),
    ],
)
def test_kinds_of_ranks_that_fail(more: dict[str, object], kind: str) -> None:
    h = History(mesh(procs=1))
    h.start()
    h.happen(RankExited("m", 0, 0, **{"exit_code": None, "signal": None, **more}))  # type: ignore[arg-type]
    h.gone()
    assert [e.failure.kind for e in told(h) if e.failure] == [kind, kind]
    assert account(h).kind == kind
    assert run_document(h.run, RunDir(Path("/r"))).meshes[0].failure.kind == kind  # type: ignore[union-attr]


@pytest.mark.parametrize(("lease", "kind"), [(True, "lease"), (False, "host_lost")])
def test_a_lost_host(lease: bool, kind: str) -> None:
    h = History(mesh(), mesh("other", hosts=("b",)), hosts=("a", "b"))
    h.start()
    h.start("other")
    h.record(AgentLost("b", "host b was out of reach", final=True, lease=lease))
    found = told(h)
    lost = next(e for e in found if e.event == "host_lost")
    assert (lost.host, lost.message, lost.hook) == ("b", "host b was out of reach", "host_lost")
    failing, failed = (e for e in found if e.failure)
    assert failing.seq > lost.seq
    assert failed.failure and failed.failure.kind == kind
    assert (failed.state, failed.failure.message) == ("lost", "rank 0 on b was lost: host b was out of reach")


def test_a_time_limit() -> None:
    h = History(mesh(time_limit=60.0, restart=RestartPolicy(3)))
    h.start()
    h.record(TimeUp("m"))
    h.gone()
    failed = next(e for e in told(h) if e.event == "mesh_failed").failure
    assert failed is not None
    assert (failed.kind, failed.message, failed.rank) == ("time_limit", "time limit of 1m", None)
    assert failed.policy == "no restart: its time limit is over"


def test_a_hang_is_one_event_with_its_verdict_and_its_end_is_another() -> None:
    h = hang()
    h.record(FOUND)
    h.happen(ProgressStopped("m", 0, (2, 3), 605.0), "b")
    hung = told(h)[-1]
    assert (hung.event, hung.hook, hung.message, hung.rank, hung.host) == ("mesh_hung", "hung", FOUND.message, 2, "b")
    assert hung.failure is not None
    assert (hung.failure.kind, hung.failure.policy) == ("hang", "reported only: nothing was ended")
    [mesh] = account(h).meshes
    assert (mesh.hangs, mesh.seq, account(h).kind) == (True, hung.seq, "goes_on")
    for host in ("a", "b"):
        h.happen(ProgressResumed("m", 0), host)
    assert told(h)[-1].event == "mesh_resumed"
    h.exit(0, 3)
    h.gone()
    [mesh] = account(h).meshes
    assert (mesh.hangs, mesh.failure.kind) == (False, "exit")
    assert mesh.seq == next(e.seq for e in told(h) if e.event == "mesh_failing"), "not the incident of the hang"


def test_a_restart_after_a_hang_names_it_as_the_cause() -> None:
    h = hang("restart", restarts=1)
    h.record(FOUND)
    for rank in range(4):
        h.exit(rank, None, 15, asked=True, error="RuntimeError: Connection closed by peer")
    h.gone()
    found = [e for e in told(h) if e.failure]
    assert [e.event for e in found] == ["mesh_hung", "mesh_failing", "mesh_restarted"]
    assert {e.failure.kind for e in found if e.failure} == {"hang"}
    [mesh] = account(h).meshes
    assert (mesh.seq, mesh.failure.policy) == (found[0].seq, "restart 1 of 1 at once")


def test_a_call_without_an_answer_is_an_event_and_no_hang() -> None:
    h = History(mesh(kind="actor"))
    h.start()
    h.record(dataclasses.replace(FOUND, call=True))
    assert (told(h)[-1].event, told(h)[-1].mesh, h.mesh().diagnosed) == ("call_timed_out", "m", None)
    assert account(h).meshes == ()


def test_an_actor_that_raises_in_its_setup() -> None:
    h = History(mesh("actor", kind="actor"), mesh())
    h.happen(Prepared("m"))
    h.start("actor")
    h.record(Report("actor", 0, "ValueError: in setup", TRACE))
    h.gone("actor")
    h.gone()
    [_, failed] = (e.failure for e in told(h) if e.failure)
    assert failed is not None
    assert (failed.kind, failed.message, failed.traceback) == ("exception", "ValueError: in setup", TRACE)
    assert failed.policy == "no restart: it has no `restart:`"
    found = account(h)
    assert (found.kind, found.summary) == ("exception", "it could not be launched: ValueError: in setup")
    assert [m.mesh for m in found.meshes] == ["actor"]


def test_what_somebody_asked_for_is_no_failure() -> None:
    h = History(mesh(restart=RestartPolicy(3)))
    h.start()
    h.record(RestartAsked({"m": 0}, 1.0, "forgectl restart"))
    h.exit(0, None, 15, asked=True)
    h.gone()
    h.start()
    h.record(StopAsked(None, 1.0, "Ctrl-C", 130))
    h.gone()
    found = told(h)
    assert not any(e.failure for e in found)
    restarted = next(e for e in found if e.event == "mesh_restarted")
    assert (restarted.by, restarted.hook, restarted.generation) == ("forgectl restart", None, 0)
    assert [e.message for e in found if e.event in ("mesh_stopping", "mesh_ended")] == ["stopped by Ctrl-C"] * 2
    assert (found[-1].event, found[-1].hook) == ("run_ended", "ended")
    assert (account(h).kind, account(h).summary) == ("user", "stopped by Ctrl-C")


def test_commands_of_events() -> None:
    h = History(mesh())
    h.record(HookBegun(1, "host_lost"))
    h.record(HookEnded(1, "host_lost", "exited with code 3"))
    h.record(HookBegun(2, "host_lost"))
    h.record(HookEnded(2, "host_lost"))
    assert h.run.hooks_begun == {1, 2}
    assert not h.run.stop
    [failed] = [e for e in told(h) if e.event == "hook_failed"]
    assert failed.message == "`on: host_lost` for event 1: exited with code 3"


def test_the_document_of_an_event() -> None:
    h = History(mesh(procs=1))
    h.start()
    h.exit(0, 1, **RAISES)
    document = event_json(next(e for e in told(h) if e.event == "mesh_failing"))
    assert json.loads(json.dumps(document)) == document
    assert document["schema_version"] == 1
    assert (document["time"], document["failure"]["failed_at"]) == ("1970-01-01T00:16:45.000Z",) * 2
    assert "by" not in document


# ------------------------------------------------------------ the same from a journal, in any pieces


def test_events_of_a_journal_that_grows(tmp_path: Path) -> None:
    h = History(mesh(restart=RestartPolicy(1)))
    h.start()
    h.exit(0, 1, **RAISES)
    h.exit(1, None, 15, asked=True)
    h.gone()
    path = tmp_path / "events.jsonl"
    writer, follower = journal.Journal(path), journal.Follower(path)
    found: list[tuple[float, float | None, Record]] = []
    for when, record in h.records:
        writer.append(when, record, when - 900.0)
        with path.open("ab") as half:  # a line that is half written
            half.write(b'{"time": 1')
        found += follower.more()[0]
        with path.open("r+b") as half:
            half.truncate(path.stat().st_size - 10)
        found += follower.more()[0]
    assert found == [(when, when - 900.0, record) for when, record in h.records]
    journal.repair(path, h.records[:3])
    assert follower.more() == ([(when, None, record) for when, record in h.records[:3]], True)
    writer.close()


# ------------------------------------------------------------ accounts


def failing(times: int, most: int) -> History:
    h = History(mesh(procs=1, restart=RestartPolicy(most)))
    for n in range(times):
        if n > 1:
            h.ring()
        h.start()
        h.now += SOON  # else it would not be tried again
        h.exit(0, 1 if n < times - 1 else 7)
        h.gone()
    return h


def test_equal_failures_before_the_last_are_one_line() -> None:
    h = failing(4, 3)
    [mesh_account] = account(h).meshes
    assert mesh_account.failure.exit_code == 7
    [earlier] = mesh_account.earlier
    assert (earlier.generation, earlier.count, earlier.message) == (2, 3, "rank 0 on a exited with code 1")
    assert earlier.policy == "restart 3 of 3 after 2 s"


def test_the_last_failure_of_a_mesh_that_lives() -> None:
    h = failing(1, 3)
    h.start()
    found = account(h)
    assert found.kind == "goes_on"
    assert found.summary == "m is running, 1 of 1 ranks ready (restarted: rank 0 on a exited with code 7)"
    assert found.meshes[0].failure.policy == "restart 1 of 3 at once"
    assert account_json(found)["meshes"][0]["failure"]["exit_code"] == 7


def test_a_rank_of_a_mesh() -> None:
    h = History(mesh(procs=3))
    h.start()
    h.exit(1, 1, **RAISES, failed_ago=1.0)
    h.exit(0, 1, error="RuntimeError: peer", failed_ago=0.0)
    h.exit(2, None, 15, asked=True)
    h.gone()
    assert account(h, meshes=["m"], rank=1).ranks == "m/1 on a exited with code 1: it was the first to fail"
    assert account(h, meshes=["m"], rank=0).ranks == "m/0 on a exited with code 1: it fell with the first"
    assert "forgectl ended it" in (account(h, meshes=["m"], rank=2).ranks or "")


def test_without_a_journal_the_status_is_told() -> None:
    h = History(mesh())
    h.start()
    h.exit(0, None, 11)
    h.exit(1, 1)
    h.gone()
    found = account_of(run_document(h.run, RunDir(Path("/r"))), [])
    [of_mesh] = found.meshes
    assert (of_mesh.failure.signal, of_mesh.failure.policy) == (11, "ranks 1 fell with it")
    assert of_mesh.failure.hint and "native code" in of_mesh.failure.hint


def test_a_launch_that_failed() -> None:
    h = History(mesh())
    for _ in ("a",):
        h.happen(StartFailed("m", 0, "could not start on host a: no such interpreter"))
    found = account(h)
    assert found.kind == "not_started"
    assert found.summary.startswith("it could not be launched: mesh m could not start on host a")


def test_ends_that_nobody_failed() -> None:
    kinds = {"the end of its driver": "driver_end", "the end of its launcher": "launcher_end", "SIGTERM": "user"}
    for by, kind in kinds.items():
        h = History(mesh())
        h.start()
        h.record(StopAsked(None, 1.0, by))
        h.gone()
        assert account(h).kind == kind


def test_ranges() -> None:
    assert ranges([7, 0, 1, 2, 5]) == "0-2,5,7"
    assert dataclasses.is_dataclass(RunEvent)
