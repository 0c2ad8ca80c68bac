"""What users' scripts parse stays the same byte for byte: `status --json`, and lines of journals and of agents.

Runs of every kind are replayed from records and printed by the command itself; the folder `golden` has what it printed
before. `WRITE_GOLDEN=1 pytest tests/unit/controller/test_golden.py` writes the files anew, for a change that users are
told of.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from forgectl.cli import driver_client, find, status
from forgectl.cli.views import render
from forgectl.controller import client, run_dir, status_document
from forgectl.controller.records import (
    RECORDS,
    Added,
    AgentLost,
    Born,
    Diagnosed,
    Moved,
    StopAsked,
    Stranded,
    from_line,
    to_line,
)
from forgectl.controller.run_dir import RunDir
from forgectl.controller.status_document import run_document
from forgectl.errors import NotFoundError
from forgectl.model.plan import MeshPlan, Program, RankPlan, RestartPolicy
from forgectl.protocol.control import CONTROLLER_TO_CLI, Report, StatusReport
from forgectl.protocol.endpoint_calls import DRIVER_TO_CLI
from forgectl.protocol.supervision import (
    AGENT_TO_CONTROLLER,
    Happening,
    MeshGone,
    Notice,
    Prepared,
    ProgressStopped,
    RankStats,
    Refused,
    StartFailed,
)
from forgectl.system.times import timestamp
from forgectl.wire.envelope import Refusal, decode, encode
from tests.unit.controller.test_state import History, mesh

GOLDEN = Path(__file__).with_name("golden")
TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\nValueError: bad "loss" ✗\n'
AFTER_TRACEBACK = ("epoch 1", "\x1b[31mbad\x1b[0m loss", "")


@dataclasses.dataclass
class Case:
    """A run, and how it is asked for."""

    history: History
    use: dict[str, dict[int, RankStats]] | None = None
    services: bytes | None = None  # the driver's answer
    mesh: tuple[str, ...] | None = None  # those that the user named


def history(*meshes: MeshPlan, hosts: tuple[str, ...] = ("a",)) -> History:
    h = History(*meshes, hosts=hosts)
    h.run.plan = dataclasses.replace(h.run.plan, name="grpo", spec="specs/grpo.yaml", lease=12.5)
    h.record(Born(4321))
    for index, host in enumerate(h.run.hosts.values()):
        host.last_seen = 1_700_000_000.0 + index
    return h


def with_gpus(plan: MeshPlan) -> MeshPlan:
    ranks = tuple(
        RankPlan(r.rank, r.local_rank, r.host, (f"{2 * r.local_rank}", f"{2 * r.local_rank + 1}"), {})
        for r in plan.ranks
    )
    return dataclasses.replace(plan, ranks=ranks)


def actor(name: str, kind: str = "actor", **more: Any) -> MeshPlan:
    return mesh(name, kind=kind, program=Program("actor", "x:X"), **more)


def starting() -> Case:
    return Case(history(mesh()))


def running() -> Case:
    h = history(with_gpus(mesh("trainer", 4, ("a", "b"))), mesh("data", 1), hosts=("a", "b"))
    h.start("trainer")
    h.start("data")
    use = {"trainer": {0: RankStats(99.5, 1 << 31), 3: RankStats(0.0, 4096)}, "gone": {0: RankStats(1.0, 1)}}
    return Case(h, use)


def failed() -> Case:
    h = history(mesh(procs=4))
    h.start()
    h.exit(0, 1, error="RuntimeError: Connection closed by peer", log_tail=("closed",))
    h.exit(1, 1, error="ValueError: bad", traceback=TRACEBACK, log_tail=AFTER_TRACEBACK, failed_ago=2.5)
    h.exit(2, None, 15, asked=True)
    h.exit(3, None, 6)
    h.gone()
    return Case(h)


def restarted() -> Case:
    h = history(mesh(restart=RestartPolicy(3)))
    h.start()
    for n in range(12):
        h.happen(Notice("m", f"rank-0.log: {n} lines were dropped"))
    h.exit(1, None, 9, oom="the cgroup's limit of 1 GB", log_tail=("allocating",))
    h.gone()
    h.start()
    return Case(h)


def waiting() -> Case:
    """For its third restart, that is for two seconds."""
    h = history(mesh(restart=RestartPolicy(3)))
    for code in (3, 2, 1):
        h.start()
        h.fail(code=code)
    return Case(h)


def failed_again() -> Case:
    h = history(mesh(restart=RestartPolicy(1)))
    for code in (3, 4):
        h.start()
        h.exit(0, code, traceback=TRACEBACK)
        h.exit(1, None, 15, asked=True, error="KeyError: 'x'", failed_ago=0.1)
        h.gone()
    return Case(h)


def stopped() -> Case:
    h = history(mesh())
    h.start()
    h.record(StopAsked(None, 10.0, "Ctrl-C", 130))
    h.exit(0, 0)
    h.exit(1, None, 15, asked=True)
    h.gone()
    return Case(h)


def stopping_in_part() -> Case:
    h = history(mesh("m"), mesh("n"))
    h.start("m")
    h.start("n")
    h.record(StopAsked(("m",), 10.0, "forgectl shutdown"))
    h.exit(0, None, 15, asked=True)
    return Case(h)


def lost() -> Case:
    h = history(mesh(procs=2, hosts=("a", "b")), hosts=("a", "b"))
    h.start()
    h.record(AgentLost("b", "host b was unreachable for longer than its lease of 12.5 s", final=True))
    h.exit(0, None, 15, asked=True)
    h.happen(MeshGone("m", 0), "a")
    h.run.hosts["a"].state = "gone"
    return Case(h)


def hung() -> Case:
    h = history(mesh(procs=2, hosts=("a", "b")), hosts=("a", "b"))
    h.start()
    h.happen(ProgressStopped("m", 0, (0,), 600.0), "a")
    h.record(Diagnosed("m", 0, "no progress for 10m: rank 1 is missing", ("rank 1 is missing", "all else waits"), (1,)))
    h.happen(ProgressStopped("m", 0, (1,), 600.0), "b")
    return Case(h, {"m": {0: RankStats(0.5, 1000, 605.0), 1: RankStats(0.5, 1000, 601.0)}})


def reconnecting() -> Case:
    h = history(mesh(procs=3, hosts=("a", "b", "c")), hosts=("a", "b", "c"))
    h.start()
    h.run.hosts["b"].state = "reconnecting"
    h.run.hosts["c"].state, h.run.hosts["c"].last_seen, h.run.hosts["c"].pid = "starting", None, None
    return Case(h)


def refused() -> Case:
    h = history(mesh("m"), with_gpus(mesh("n")))
    h.happen(Prepared("m"))
    h.happen(Refused("n", Refusal(75, "on host a: GPU 0 is taken by run x", "wait, or end the holder")))
    h.happen(MeshGone("m", 0))
    return Case(h)


def refused_without_a_hint() -> Case:
    h = history(mesh())
    h.happen(Refused("m", Refusal(66, "on host a: cannot start python4")))
    return Case(h)


def cannot_start() -> Case:
    h = history(mesh())
    h.happen(Prepared("m"))
    h.happen(StartFailed("m", 0, "could not start on host a: the fork server ended", TRACEBACK))
    return Case(h)


def cannot_restart() -> Case:
    h = history(mesh(restart=RestartPolicy(1)))
    h.start()
    h.exit(0, 1)
    h.gone()
    h.happen(StartFailed("m", 1, "cannot bind a port on 10.0.0.1 of host a: Address in use"))
    h.gone()
    return Case(h)


def unkillable() -> Case:
    h = history(mesh())
    h.start()
    h.record(StopAsked(None, 0.0, "forgectl shutdown"))
    h.exit(0, None, 9, asked=True)
    h.happen(MeshGone("m", 0, 2, ("python3 (pid 501)", "nvidia-smi (pid 77)")))
    return Case(h)


def actors() -> Case:
    h = history(actor("open"), actor("ready", restart=RestartPolicy(2)), actor("raised"))
    for name in h.run.meshes:
        h.start(name)
    h.record(Report("ready", 0))
    h.record(Report("raised", 0, "its constructor or setup raised ValueError: bad", TRACEBACK))
    return Case(h)


def services(answer: bytes | None = None) -> Case:
    added = [actor(name, "service", procs=1) for name in ("svc.1", "other.0", "svc.0", "svc.10", "svc.2")]
    h = history(mesh("driver", 1, kind="driver"))
    h.start("driver")
    for plan in added:
        h.record(Added(plan))
        h.start(plan.mesh)
        h.record(Report(plan.mesh, 0))
    return Case(h, {"svc.0": {0: RankStats(12.25, 1000)}}, answer)


def services_with_metrics() -> Case:
    counts: dict[str, object] = {"total": 3, "successes": 2, "failures": 1, "cancelled": 0, "requests_per_second": 0.05}
    counts |= {"latency_mean": 0.0015, "latency_p50": 0.001, "latency_p99": 0.25}
    none: dict[str, object] = {"total": 0, "successes": 0, "failures": 0, "cancelled": 4, "requests_per_second": 0.0}
    none |= {"latency_mean": None, "latency_p50": None, "latency_p99": None}

    def replica(index: int, healthy: bool, ended: str | None, sessions: int) -> dict[str, object]:
        which = {"index": index, "mesh": f"svc.{index}", "healthy": healthy, "ended": ended}
        return {**which, "active": 1 - index, "queued": 0, "sessions": sessions, **(none if ended else counts)}

    replicas = [replica(0, True, None, 2), replica(1, False, "mesh svc.1: it is lost", 0)]
    svc = {"service": "svc", "active": 1, "queued": 7, "sessions": 2, **counts, "replicas": replicas}
    empty = {"service": "other", "active": 0, "queued": 0, "sessions": 0, **none, "replicas": []}
    return services(json.dumps({"type": "Metrics", "services": {"svc": svc, "other": empty}}).encode())


def one_mesh() -> Case:
    return dataclasses.replace(running(), mesh=("data",))


def moved() -> Case:
    h = history(mesh(procs=2, hosts=("a", "b"), restart=RestartPolicy(2)), hosts=("a", "b", "c"))
    h.start()
    h.record(AgentLost("b", "host b was rebooted", final=True))
    h.happen(MeshGone("m", 0), "a")
    h.record(Moved(mesh(procs=2, hosts=("a", "c"), restart=RestartPolicy(2))))
    return Case(h)


def stranded() -> Case:
    h = history(mesh(procs=2, hosts=("a", "b"), restart=RestartPolicy(2)), hosts=("a", "b"))
    h.start()
    h.record(AgentLost("b", "host b was rebooted", final=True))
    h.happen(MeshGone("m", 0), "a")
    h.record(Stranded("m", "host b was lost, and no other takes its place: no room"))
    return Case(h)


def cut() -> Case:
    """Its texts are too long for one message, whose limit the test lowers."""
    h = history(mesh(procs=3, restart=RestartPolicy(1)))
    for generation in range(2):
        h.start()
        for rank, text in enumerate(("lorem ipsum dolor sit amet " * 4, "ü" * 90, "x" * 200)):
            h.exit(rank, 1, error=text, traceback=f"{text} end of {rank}", log_tail=(f"{text} the end", text))
        h.happen(Notice("m", "0123456789" * 7))
        h.happen(MeshGone("m", generation, 0, ("a process with a name that is rather long (pid 5)",)))
    return Case(h)


CASES: tuple[Callable[[], Case], ...] = (
    *(
        starting,
        running,
        failed,
        restarted,
        waiting,
        failed_again,
        stopped,
        stopping_in_part,
        lost,
        hung,
        reconnecting,
        refused,
    ),
    *(refused_without_a_hint, cannot_start, cannot_restart, unkillable, actors, services, services_with_metrics),
    *(one_mesh, moved, stranded, cut),
)


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Case]:
    """A run that `forgectl status` finds, and its name."""
    made: Case = request.param()
    if request.param is cut:
        monkeypatch.setattr(status_document, "TEXT_ROOM", 1500)
    folder = RunDir(Path("/runs/t-0000"))
    report = StatusReport(run_document(made.history.run, folder, use=made.use))
    answer = decode(encode(report), CONTROLLER_TO_CLI).run

    def ask_driver(*_: object) -> Any:
        if made.services is None:
            raise NotFoundError("no driver")
        return decode(made.services, DRIVER_TO_CLI)

    monkeypatch.setattr(run_dir, "all_runs", lambda: [folder])
    monkeypatch.setattr(run_dir, "refused_runs", dict)
    monkeypatch.setattr(client, "document", lambda run, *, stats=False: answer)
    monkeypatch.setattr(find, "find", lambda name, *, ended: find.Found(folder, name, made.mesh or ()))
    monkeypatch.setattr(driver_client, "ask_driver", ask_driver)
    monkeypatch.setattr(render, "age", lambda start, end=None: "5m" if start else "-")
    monkeypatch.setattr(render, "_now", lambda: render._time(timestamp(made.history.now)))
    monkeypatch.setattr(render, "clock", lambda time, *, whole=False: "14:03:22" if time else "-")
    monkeypatch.setenv("COLUMNS", "200")
    return request.param.__name__, made


def check(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def ask(made: Case, *, as_json: bool) -> None:
    name = made.mesh[0] if made.mesh else None
    command = status.status.callback
    assert command is not None
    command(name, verbose=True, watch=False, everything=True, form=None, quiet=False, as_json=as_json)


def test_the_json_of_a_run(case: tuple[str, Case], capsys: pytest.CaptureFixture[str]) -> None:
    ask(case[1], as_json=True)
    check(f"{case[0]}.json", capsys.readouterr().out)


def test_the_table_of_a_run(case: tuple[str, Case], capsys: pytest.CaptureFixture[str]) -> None:
    ask(case[1], as_json=False)
    check(f"{case[0]}.txt", capsys.readouterr().out)


@pytest.mark.parametrize("make", [failed, lost, failed_again, refused], ids=lambda make: make.__name__)
def test_the_json_of_a_run_that_has_ended_as_it_lies_on_disk(
    make: Callable[[], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "t-0000")
    run.path.mkdir()
    run.write_final(run_document(make().history.run, RunDir(Path("/runs/t-0000")), alive=False))
    monkeypatch.setattr(run_dir, "all_runs", lambda: [run])
    monkeypatch.setattr(run_dir, "refused_runs", dict)
    ask(Case(make().history), as_json=True)
    text = (GOLDEN / f"{make.__name__}.json").read_text()
    assert capsys.readouterr().out == text.replace('"alive": true', '"alive": false')


def happenings(lines: list[Any]) -> set[str]:
    return {line["what"]["type"] for line in lines if "what" in line}


EVERY_HAPPENING = {kind.__name__ for kind in get_args(Happening)}


def test_lines_of_journals_are_read_and_written_as_before() -> None:
    """Those of earlier versions, too: their runs may be alive."""
    lines = (GOLDEN / "journal.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    assert {line["type"] for line in read} == {kind.__name__ for kind in RECORDS}
    assert happenings(read) == EVERY_HAPPENING
    assert [json.dumps(to_line(*from_line(line))) for line in read] == lines


def test_lines_of_agents_are_read_and_written_as_before() -> None:
    lines = (GOLDEN / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert happenings([json.loads(line) for line in lines]) == EVERY_HAPPENING
    assert [encode(decode(line, AGENT_TO_CONTROLLER)) for line in lines] == lines
