"""What people see of runs: at every width, of runs that failed, and of what has changed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Group

from forgectl.cli.views import render
from forgectl.cli.views.status_view import ChangedRows, news, nothing_runs, shown, status_view
from forgectl.controller.run_dir import RunDir
from forgectl.controller.status_document import run_document
from forgectl.model.plan import Program
from forgectl.model.status import RankStatus, RunStatus
from tests.unit.cli.printing import printed
from tests.unit.controller import test_golden as cases
from tests.unit.controller.test_state import mesh


def status_of(case: cases.Case, run: str = "t-0000") -> RunStatus:
    found = run_document(case.history.run, RunDir(Path(f"/runs/{run}")), use=case.use)
    return dataclasses.replace(found, run=run)


def changed_ranks(run: RunStatus, **values: Any) -> RunStatus:
    def changed(rank: RankStatus) -> RankStatus:
        return dataclasses.replace(rank, **values)

    meshes = (dataclasses.replace(m, ranks=tuple(map(changed, m.ranks))) for m in run.meshes)
    return dataclasses.replace(run, meshes=tuple(meshes))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("make", [c for c in cases.CASES if c is not cases.cut], ids=lambda make: make.__name__)
def test_rows_are_one_line_each_and_fit(make: Any, width: int) -> None:
    status = status_of(make())
    lines = printed(status_view([status], ranks=False), width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith("t-0000")]
    assert [row.split()[1] for row in rows] == [m.mesh for m in status.meshes]
    assert all(m.state in row for m, row in zip(status.meshes, rows, strict=True))
    verbose = printed(status_view([status], ranks=True), width)
    for m in status.meshes:
        for rank in m.ranks:
            state = "waiting" if m.restarting and m.restarting.at else rank.state
            assert any(line.startswith(f"{m.mesh}/{rank.rank} ") and state in line for line in verbose.splitlines())


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_reason_of_a_failure_is_shown_whole_at_every_width(width: int) -> None:
    status = status_of(cases.failed())
    text = " ".join(printed(status_view([status], ranks=False), width).split())
    words = str(status.meshes[0].reason).split()
    if width >= 80:
        assert " ".join(words) in text
    assert all(word in text for word in words)


def test_a_long_name_moves_its_own_row_alone() -> None:
    other = status_of(cases.running(), f"{'long' * 15}-0001")
    head, one, _, long, _ = printed(status_view([status_of(cases.running()), other], ranks=False), 1000).splitlines()
    assert one.index("trainer") == head.index("MESH") == 50
    assert other.run in long
    assert long.index("trainer") > one.index("trainer")


def test_the_rank_that_is_the_cause_is_marked() -> None:
    rows = printed(status_view([status_of(cases.failed())], ranks=True)).splitlines()
    assert [row.split()[0] for row in rows if row.rstrip().endswith("(root cause)")] == ["m/1"]


def test_ranks_that_have_ended_use_nothing() -> None:
    run = changed_ranks(status_of(cases.failed()), cpu_percent=0.0, rss_bytes=0)
    assert " B " not in printed(status_view([run], ranks=True))
    alive = changed_ranks(status_of(cases.running()), cpu_percent=0.0, rss_bytes=0)
    assert "0 B" in printed(status_view([alive], ranks=True))


def with_implicit_driver() -> cases.Case:
    driver = mesh("driver", 1, kind="driver", program=Program("resident", "(resident)"))
    h = cases.history(driver, cases.actor("work"))
    h.start("driver")
    h.start("work")
    return cases.Case(h)


def test_a_driver_that_nobody_wrote_is_not_shown_unless_asked_for() -> None:
    status = status_of(with_implicit_driver())
    assert [m.mesh for m in shown(status)] == ["work"]
    assert "driver" not in printed(status_view([status], ranks=False))
    assert "driver" in printed(status_view([status], ranks=True))
    assert "driver" in printed(status_view([status], ranks=False, wide=True), 400)


def test_a_driver_that_nobody_wrote_is_shown_if_it_fails_or_is_all_there_is() -> None:
    status = status_of(with_implicit_driver())
    driver, work = status.meshes
    failed = dataclasses.replace(status, meshes=(dataclasses.replace(driver, state="failed"), work))
    assert [m.mesh for m in shown(failed)] == ["driver", "work"]
    alone = dataclasses.replace(status, meshes=(driver,))
    assert [m.mesh for m in shown(alone)] == ["driver"]


def seen(runs: list[RunStatus], changed: ChangedRows, *, ranks: bool = True) -> list[str]:
    return [line.split()[0] for line in printed(Group(*news(runs, changed, ranks=ranks)), 200).splitlines()]


def test_news_are_the_rows_that_changed() -> None:
    changed = ChangedRows()
    run = status_of(cases.running())
    ranks = ["trainer/0", "trainer/1", "trainer/2", "trainer/3", "data/0"]
    assert seen([run], changed) == ["RUN", "t-0000", "t-0000", "RANK", *ranks]
    assert seen([run], changed) == []
    assert seen([changed_ranks(run, cpu_percent=7.0, rss_bytes=7)], changed) == []
    one = dataclasses.replace(run.meshes[1], state="failed", reason="it fell")
    two = dataclasses.replace(run, meshes=(run.meshes[0], one))
    assert seen([two], changed) == ["t-0000"]
    assert seen([changed_ranks(two, pid=3)], changed) == ranks


def test_time_that_passes_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = ChangedRows()
    run = status_of(cases.waiting())
    assert "restarting in " in printed(status_view([run], ranks=False), 200)
    for elapsed in ("5s", "6s"):
        monkeypatch.setattr(render, "age", lambda *_, now=elapsed: now)
        monkeypatch.setattr(render, "seconds_until", lambda _, left=float(elapsed[0]): left)
        lines = seen([run], changed, ranks=False)
    assert lines == []


def test_where_nothing_runs_the_last_end_is_told() -> None:
    assert printed(nothing_runs(None), 200) == "no runs; `forgectl launch SPEC` starts one\n"
    ended = dataclasses.replace(status_of(cases.failed()), ended_at="2026-11-22T20:00:00Z")
    text = printed(nothing_runs(ended), 200)
    assert text.startswith("no runs; the last one, t-0000, failed ")
    assert "status -a" in text


@pytest.mark.parametrize(
    ("time", "pattern"),
    [("2001-02-03T04:05:06Z", r"2001-02-0[234]"), (None, "-")],
)
def test_times_of_other_years_are_dates(time: str | None, pattern: str) -> None:
    assert re.fullmatch(pattern, render.clock(time))
