"""The state of a run on its way: over a socket, to the disk, as JSON and back again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from forgectl.actor.deaths import died
from forgectl.controller.mesh_news import news
from forgectl.controller.run_dir import RunDir, seal
from forgectl.controller.status_document import run_document
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.protocol.control import CONTROLLER_TO_CLI, StatusReport
from forgectl.wire.codec import from_json, to_json
from forgectl.wire.envelope import decode, encode
from tests.unit.controller.test_golden import CASES, GOLDEN, Case, cut, failed, lost, refused, restarted


def of(case: Case) -> RunStatus:
    return run_document(case.history.run, RunDir(Path("/runs/t-0000")), use=case.use)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_it_is_the_same_after_a_journey(make: Callable[[], Case]) -> None:
    status = of(make())
    assert decode(encode(StatusReport(status, True)), CONTROLLER_TO_CLI) == StatusReport(status, True)


@pytest.mark.parametrize("make", [c for c in CASES if c is not cut], ids=lambda make: make.__name__)
def test_what_status_prints_is_read_back(make: Callable[[], Case]) -> None:
    """So are the final states of earlier versions, which had that form."""
    made = make()
    status = of(made)
    [printed] = json.loads((GOLDEN / f"{make.__name__}.json").read_text())["runs"]
    printed.pop("services", None)
    read = from_json(RunStatus, printed)
    assert read.meshes == tuple(m for m in status.meshes if not made.mesh or m.mesh in made.mesh)
    assert (read.hosts, read.error, read.state) == (status.hosts, status.error, status.state)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        seal(b"[1]"),
        seal(b'{"run":"t-0000"}'),
        seal(json.dumps({**to_json(of(failed())), "run": "t-0001"}).encode()),
        seal(json.dumps({**to_json(of(failed())), "state": "\x1b[2J"}).encode()),
    ],
    ids=range(6),
)
def test_a_final_state_that_cannot_be_read_is_set_aside(data: bytes, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "t-0000")
    run.path.mkdir()
    ended = [run.has_ended]
    run.write_final(of(failed()))
    ended.append(run.has_ended)
    assert run.read_final() == of(failed())
    run.final_file.write_bytes(data)
    assert run.read_final() is None
    ended.append(run.has_ended)
    assert ended == [False, True, False]
    [kept] = run.path.glob("status.json.corrupt-*")
    assert kept.read_bytes() == data


@pytest.mark.parametrize("make", [failed, lost, refused, restarted], ids=lambda make: make.__name__)
def test_the_driver_and_whoever_else_has_a_handle_are_told_the_same_death(make: Callable[[], Case]) -> None:
    run = make().history.run
    for mesh in of(make()).meshes:
        theirs = died(news(run.meshes[mesh.mesh], run.hosts))
        assert vars(died(mesh)) == vars(theirs)
        assert theirs.mesh == mesh.mesh


def test_a_mesh_whose_run_is_gone_has_died_for_that() -> None:
    gone = MeshStatus.lost("m", "its run has ended")
    assert gone.ended and str(died(gone)) == "mesh m: its run has ended"
