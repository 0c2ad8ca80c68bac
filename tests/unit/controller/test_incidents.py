"""Incidents: what they hold, and their bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgectl.controller import incidents as module
from forgectl.controller.incidents import MOST, MOST_BYTES, Incidents, read_incident
from forgectl.controller.run_dir import RunDir
from forgectl.model.event import RunEvent
from forgectl.redaction import of_run
from tests.unit.controller.test_events import told
from tests.unit.controller.test_state import History, mesh

TOKEN = "hf_" + "a1B2" * 6


def failed(procs: int = 3, tail: tuple[str, ...] = ("last",)) -> tuple[History, RunEvent]:
    h = History(mesh(procs=procs))
    h.start()
    h.exit(1, 1, error="ValueError: bad", log_tail=tail)
    return h, next(e for e in told(h) if e.event == "mesh_failing")


def test_an_incident_has_the_failure_and_the_last_lines_of_all_ranks(tmp_path: Path) -> None:
    h, event = failed(tail=("its token is", TOKEN, "password is s3cret-word"))
    for rank in (0, 2):
        log = RunDir(tmp_path).log("m", 0, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"step 1\nrank {rank} has s3cret-word\n")
    Incidents(RunDir(tmp_path), of_run((), {"DB_PASSWORD": "s3cret-word"}), reads_logs=True).write(
        event, h.mesh(), {"a": "up"}, verdict=["rank 1 never came"]
    )
    found = read_incident(RunDir(tmp_path), event.seq, event.subject)
    assert found is not None
    assert found["failure"]["message"] == "rank 1 on a exited with code 1: ValueError: bad"
    assert (found["hosts"], found["verdict"]) == ({"a": "up"}, ["rank 1 never came"])
    assert [(r["rank"], r["log_tail"]) for r in found["ranks"]] == [
        (1, ["its token is", "***", "password is ***"]),
        (0, ["step 1", "rank 0 has ***"]),
        (2, ["step 1", "rank 2 has ***"]),
    ]
    [file] = (tmp_path / "incidents").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_log_lines_are_left_out_where_secrets_are_not_known(tmp_path: Path) -> None:
    h, event = failed()
    log = RunDir(tmp_path).log("m", 0, 0)
    log.parent.mkdir(parents=True)
    log.write_text("a secret\n")
    Incidents(RunDir(tmp_path), of_run(()), reads_logs=False).write(event, h.mesh(), {})
    found = read_incident(RunDir(tmp_path), event.seq, "m")
    assert found is not None
    assert [r["log_tail"] for r in found["ranks"]] == [["last"], [], []], "the agent removed secrets from the first"


def test_it_is_bounded_in_size(tmp_path: Path) -> None:
    h, event = failed(procs=200, tail=("x" * MOST_BYTES,))
    Incidents(RunDir(tmp_path), of_run(()), reads_logs=True).write(event, h.mesh(), {})
    [file] = (tmp_path / "incidents").iterdir()
    assert file.stat().st_size <= MOST_BYTES
    assert json.loads(file.read_text())["message"].startswith("rank 1 on a exited with code 1")


def test_they_are_bounded_in_number(tmp_path: Path) -> None:
    _, event = failed()
    incidents = Incidents(RunDir(tmp_path), of_run(()), reads_logs=True)
    for seq in range(1, 3 * MOST):
        incidents.write(RunEvent(seq, 0.0, None, "host_lost", "r", "gone", host="a"), None, {})
    kept = sorted(int(path.name.partition("-")[0]) for path in (tmp_path / "incidents").iterdir())
    assert kept == [*range(1, MOST // 2 + 1), *range(3 * MOST - MOST // 2, 3 * MOST)]
    assert event.seq


def test_who_was_first_may_be_known_later(tmp_path: Path) -> None:
    h, event = failed()
    incidents = Incidents(RunDir(tmp_path), of_run(()), reads_logs=True)
    incidents.write(event, h.mesh(), {"a": "up"})
    h.exit(2, 1, error="KeyError: first", failed_ago=60.0)
    h.exit(0, None, 15, asked=True)
    h.gone()
    last = next(e for e in told(h) if e.event == "mesh_failed")
    incidents.amend(event.seq, last)
    found = read_incident(RunDir(tmp_path), event.seq, "m")
    assert found is not None
    assert (found["failure"]["rank"], found["hosts"], len(found["ranks"])) == (2, {"a": "up"}, 3)
    incidents.amend(99, last)  # there is none: nothing happens


def test_a_full_disk_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h, event = failed()

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    Incidents(RunDir(tmp_path), of_run(()), reads_logs=True).write(event, h.mesh(), {})
    assert read_incident(RunDir(tmp_path), event.seq, "m") is None
