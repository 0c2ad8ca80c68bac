"""Which mesh a driver adopts that was restarted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from forgectl.controller.adoption import claimed
from forgectl.controller.records import Added, Adopted, StopAsked
from forgectl.errors import BusyError, NotFoundError, UsageError
from forgectl.model.plan import RestartPolicy
from forgectl.protocol.control import AddMesh, Report
from tests.unit.controller.test_state import History, mesh

ALWAYS = RestartPolicy(max=9, backoff=0.0)
PLAN = mesh("late", procs=1, kind="actor")
TERMS = {"argument 1": "aa"}


def driven(*added: Added) -> History:
    """A run with an actor that the spec declares, after the first restart of its driver."""
    h = History(mesh("told", procs=1, kind="actor"), mesh("driver", procs=1, kind="driver", restart=ALWAYS))
    for name in ("told", "driver"):
        h.start(name)
    h.record(Report("told", 0))
    for record in added or (Added(PLAN, "late", TERMS),):
        h.record(record)
        h.start(record.plan.mesh)
        h.record(Report(record.plan.mesh, 0))
    return h


def restart(h: History) -> None:
    h.fail("driver")
    h.start("driver")


def ask(claim: str = "late", driver: int = 1, **changes: Any) -> AddMesh:
    terms = changes.pop("terms", TERMS)
    return AddMesh(dataclasses.replace(PLAN.unit, **changes), True, claim, terms, driver)


def test_a_driver_adopts_what_the_one_before_it_launched_once() -> None:
    h = driven()
    assert claimed(h.run, ask(driver=0)) is None, "its own driver lives"
    restart(h)
    assert (h.mesh("late").state, h.mesh("late").generation) == ("ready", 0)
    assert claimed(h.run, ask()) is h.mesh("late")
    h.record(Adopted("late"))
    assert claimed(h.run, ask()) is None
    restart(h)
    assert claimed(h.run, ask(driver=2)) is h.mesh("late")


def test_what_the_spec_declares_is_adopted_by_its_name() -> None:
    h = driven()
    restart(h)
    unit = h.mesh("told").plan.unit
    assert claimed(h.run, AddMesh(unit, True, "told", TERMS, 1)) is h.mesh("told")


@pytest.mark.parametrize("claim", ["other", "late#1", "", "told "])
def test_another_claim_is_for_a_new_mesh(claim: str) -> None:
    h = driven()
    restart(h)
    assert claimed(h.run, ask(claim)) is None
    with pytest.raises(NotFoundError):
        claimed(h.run, dataclasses.replace(ask(claim), only_adopt=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"terms": {"argument 1": "bb"}}, "differs in argument 1"),
        ({"terms": {"argument 1": "aa", "argument lr": "cc"}}, "differs in argument lr"),
        ({"terms": {}}, "differs in argument 1"),
        ({"procs": 2, "env": {"A": "1"}}, "differs in the option procs, the option env"),
        ({"restart": ALWAYS}, "differs in the option restart"),
        ({"program": dataclasses.replace(PLAN.unit.program, target="x:Y")}, "differs in the class (x:X before)"),
    ],
)
def test_a_launch_that_differs_is_refused(changes: dict[str, Any], said: str) -> None:
    h = driven()
    restart(h)
    with pytest.raises(UsageError, match="lives on") as caught:
        claimed(h.run, ask(**changes))
    assert said in caught.value.message


def test_a_mesh_that_is_ended_is_not_adopted() -> None:
    h = driven()
    h.record(StopAsked(("late",), 1.0, "its driver"))
    restart(h)
    assert claimed(h.run, ask()) is None
    h.gone("late")
    assert claimed(h.run, ask()) is None


def test_a_request_of_a_driver_that_has_ended_is_refused() -> None:
    h = driven()
    restart(h)
    with pytest.raises(BusyError, match="generation 0 of the driver has ended"):
        claimed(h.run, ask(driver=0))


def test_a_mesh_that_was_being_constructed_begins_anew_and_one_that_was_up_does_not() -> None:
    h = driven(Added(PLAN, "late"), Added(mesh("early", procs=1, kind="actor"), "early"))
    plan = mesh("half", procs=1, kind="actor")
    h.record(Added(plan, "half"))
    h.start("half")
    assert h.mesh("half").open
    restart(h)
    assert (h.mesh("half").state, h.mesh("late").state, h.mesh("early").state) == ("restarting", "ready", "ready")
    h.gone("half")
    assert (h.mesh("half").generation, h.mesh("half").restarts) == (1, [])
    assert claimed(h.run, AddMesh(plan.unit, True, "half", None, 1)) is h.mesh("half")


def test_a_driver_without_restarts_left_ends_the_run() -> None:
    h = History(mesh("told", procs=1, kind="actor"), mesh("driver", procs=1, kind="driver"))
    for name in ("told", "driver"):
        h.start(name)
    h.record(Report("told", 0))
    h.fail("driver")
    h.gone("told")
    assert (h.run.state, h.mesh("told").state) == ("failed", "stopped")
