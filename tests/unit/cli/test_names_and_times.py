"""Times that users write, how runs ended in words, and which meshes are restarted together."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from forgectl.cli.moments import moment
from forgectl.cli.outcome import exit_code, outcome
from forgectl.cli.restarting import waves
from forgectl.errors import UsageError
from forgectl.model.status import ControllerStatus, FailureStatus, MeshStatus, RunStateName, RunStatus

NOW = datetime.datetime(2026, 11, 22, 14, 30).timestamp()  # local, as users write times


def local(*parts: int) -> float:
    return datetime.datetime(*parts).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("10m", NOW - 600),
        ("1h30m", NOW - 5400),
        ("2d", NOW - 172800),
        ("1.5s", NOW - 1.5),
        ("250ms", NOW - 0.25),
        (" 90s ", NOW - 90),
        ("03:00", local(2026, 11, 22, 3)),
        ("3:00", local(2026, 11, 22, 3)),
        ("14:30:00", NOW),
        ("14:31", local(2026, 11, 21, 14, 31)),
        ("2026-11-22", local(2026, 11, 22)),
        ("2026-11-22T03:00", local(2026, 11, 22, 3)),
        ("2026-11-22 03:00:01.250", local(2026, 11, 22, 3, 0, 1) + 0.25),
        ("2026-11-22T03:00:00Z", datetime.datetime(2026, 11, 22, 3, tzinfo=datetime.timezone.utc).timestamp()),
        ("2026-11-22T03:00:00+02:00", datetime.datetime(2026, 11, 22, 1, tzinfo=datetime.timezone.utc).timestamp()),
    ],
)
def test_times_as_users_write_them(text: str, means: float) -> None:
    assert moment("--since", text, NOW) == pytest.approx(means)


@pytest.mark.parametrize("text", ["", "yesterday", "10", "10 m", "25:00", "3:0", "-10m", "2026-13-01"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="--since"):
        moment("--since", text, NOW)


def mesh(name: str, state: str, reason: str | None = None, **more: object) -> MeshStatus:
    bare = MeshStatus.lost(name, "")
    return dataclasses.replace(bare, state=state, reason=reason, kind="script", **more)  # type: ignore[arg-type]


def run(state: RunStateName, *meshes: MeshStatus, **more: object) -> RunStatus:
    fields: dict[str, Any] = {"exit_code": 0, "error": None, "stopped_by": None, "was_up": True, **more}
    return RunStatus(
        run="t-0000", name="t", state=state, spec="", started_at="2026-11-22T20:00:00Z", ended_at=None,
        controller=ControllerStatus(1, False), run_dir="", lease=30.0, hosts=(), meshes=meshes, **fields,
    )  # fmt: skip


def failure(exit_code: int | None = None, signal: int | None = None) -> FailureStatus:
    return FailureStatus(0, "local", "rank 0 …", exit_code=exit_code, signal=signal)


def test_how_it_ended_in_words_and_as_a_code() -> None:
    bad = mesh("bad", "failed", "rank 0 on local exited with code 3", failure=failure(3))
    good, ended = mesh("good", "succeeded"), mesh("ended", "stopped", "stopped by Ctrl-C")
    failed = run("failed", good, bad, exit_code=3)
    assert outcome(failed) == "run t-0000 failed: bad: rank 0 on local exited with code 3"
    assert outcome(failed, ["bad"]) == "bad failed: rank 0 on local exited with code 3"
    assert outcome(failed, ["good", "bad"]).splitlines()[0] == "good succeeded"
    assert outcome(run("stopped", ended, stopped_by="Ctrl-C")) == "run t-0000 stopped by Ctrl-C"
    assert outcome(run("stopped", ended), ["ended"]) == "ended stopped by Ctrl-C"
    assert (exit_code(failed), exit_code(failed, ["bad"]), exit_code(failed, ["good"])) == (3, 3, 0)
    assert exit_code(run("stopped", ended), ["ended"]) == 143


@pytest.mark.parametrize(
    ("of", "code"),
    [
        (mesh("m", "failed", failure=failure(7)), 7),
        (mesh("m", "failed", failure=failure(signal=9)), 137),
        (mesh("m", "failed", failure=failure()), 1),
        (mesh("m", "failed"), 1),
        (mesh("m", "lost"), 69),
        (mesh("m", "succeeded"), 0),
        (mesh("m", "running"), 0),
    ],
)
def test_the_exit_code_of_a_mesh(of: MeshStatus, code: int) -> None:
    assert of.exit_code == code


def test_replicas_of_a_service_are_restarted_one_after_the_other() -> None:
    replicas = [dataclasses.replace(mesh(f"policy.{n}", "ready"), kind="service") for n in range(3)]
    one = dataclasses.replace(mesh("judge.0", "ready"), kind="service")
    assert waves([mesh("a", "running"), *replicas, one, mesh("b", "running")]) == [
        ("a", "policy.0", "judge.0", "b"),
        ("policy.1",),
        ("policy.2",),
    ]
    assert waves([]) == []
