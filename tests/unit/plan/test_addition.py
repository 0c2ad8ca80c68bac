"""Meshes that come to a run later: where there is room beside the others, and on hosts that are left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.errors import BusyError, ForgeError, SpecError, UsageError
from forgectl.model.plan import Gpu, MeshPlan, Plan, Program, RestartPolicy, Unit
from forgectl.plan.addition import held_by, place_more, replace_lost
from tests.unit.plan.plan_cases import HOLDER, case, hosts_of, placed, spec_of
from tests.unit.plan.test_properties import Problem, problems


def unit(procs: int = 1, hosts: tuple[str, ...] | int | None = None, *, gpus: bool = False) -> Unit:
    program = Program("actor", "m:C")
    return Unit("m", "actor", program, procs, hosts, gpus, {"A": "mesh"}, None, (), "fork", RestartPolicy())


def plan_of(hosts: str, meshes: str) -> tuple[Plan, dict[str, tuple[Gpu, ...]]]:
    """A plan of all the hosts, as code may add meshes; and all GPUs by host."""
    spec, facts = case(hosts, meshes, "driver: {command: 'true'}\n")
    return placed(spec, facts), {name: f.gpus for name, f in facts.items()}


@pytest.mark.parametrize(
    ("hosts", "meshes", "wanted", "found"),
    [
        ("a:0 b:0", "x:2-/2", unit(3), ("a",)),
        ("a:0#2 b:0#2", "x:2-/2", unit(2), ("a", "b")),  # one slot is left on each
        ("a:0#2 b:0", "x:2-/2", unit(2), ("b",)),
        ("a:0#2 b:0", "x:2-/2", unit(2, 2), ("a", "b")),
        ("a:4 b:4", "x:4/2", unit(2, gpus=True), ("a",)),
        ("a:4#2 b:4", "x:4/2", unit(2, gpus=True), ("b",)),  # a has free GPUs, and no slot for them
        ("a:4#2 b:4", "x:2@a y:2-@b", unit(2, ("a",)), ("a",)),  # counted apart
    ],
)
def test_it_goes_where_there_is_room_beside_the_run_s_meshes(
    hosts: str, meshes: str, wanted: Unit, found: tuple[str, ...]
) -> None:
    plan, gpus = plan_of(hosts, meshes)
    added = place_more(plan, wanted, held_by(plan.meshes, gpus), {}, plan.meshes)
    assert added.hosts == found
    assert added.unit == wanted
    assert {e["A"] for e in added.env.values()} == {"mesh"}


REFUSED = [
    (
        "a:0#2",
        "x:2-",
        unit(1),
        BusyError,
        "actors.m.procs: wants 1 slot, but a has no slot, beside the run's other meshes",
    ),
    ("a:0#2", "x:1-", unit(3), UsageError, "actors.m.procs: wants 3 slots, but a has 1 slot"),
    ("a:0 b:0#0", "x:1-", unit(1, ("b",)), UsageError, "mesh m: host b takes no ranks, as it has no slots"),
    ("a:0 b:0#0", "x:1-", unit(2, 2), UsageError, "mesh m wants 2 hosts, but the run has 1: a"),
    ("a:0", "x:1-", unit(1, ("b",)), UsageError, "mesh m: no host b in this run; it has a"),
    ("a:0 b:0", "x:1-", unit(3, 2), UsageError, "mesh m: 3 processes cannot be spread evenly over 2 hosts"),
    (
        "a:2#1",
        "x:1",
        unit(1, gpus=True),
        BusyError,
        "not enough free GPUs: actors.m wants 1 GPU. Taken: GPU 0 of a by mesh x",
    ),
    (
        "a:1",
        "x:1",
        unit(1, gpus=True),
        BusyError,
        "not enough free GPUs: actors.m wants 1 GPU. Taken: GPU 0 of a by mesh",
    ),
    ("a:1", "x:1", unit(2, gpus=True), UsageError, "actors.m.procs: wants 2 GPUs, but a has 1 GPU"),
    (
        "a:2!1",
        "x:1",
        unit(1, gpus=True),
        BusyError,
        f"not enough free GPUs: actors.m wants 1 GPU. Taken: GPU 0 of a by mesh x of this run; GPU 1 of a by {HOLDER}",
    ),
]


@pytest.mark.parametrize(("hosts", "meshes", "wanted", "kind", "said"), REFUSED)
def test_it_is_refused_where_there_is_none(
    hosts: str, meshes: str, wanted: Unit, kind: type[ForgeError], said: str
) -> None:
    plan, gpus = plan_of(hosts, meshes)
    with pytest.raises(kind) as caught:
        place_more(plan, wanted, held_by(plan.meshes, gpus), {}, plan.meshes)
    assert caught.value.message.startswith(said)


def test_the_host_of_a_driver_alone_takes_no_other_mesh() -> None:
    plan = placed(spec_of("hosts: [gpu01]\nactors: {x: {class: m:C}}"), hosts_of("gpu01:0 local:0")[1])
    assert place_more(plan, unit(), {}, {}).hosts == ("gpu01",)
    with pytest.raises(UsageError, match="host local takes no ranks") as caught:
        place_more(plan, unit(1, ("local",)), {}, {})
    assert "list local there" in (caught.value.hint or "")


def test_a_mesh_goes_to_other_hosts_as_its_spec_wishes() -> None:
    plan, gpus = plan_of("a:2 b:2 c:2", "x:4/2 y:1@c")
    x, y = plan.mesh("x"), plan.mesh("y")
    assert (x.hosts, y.hosts) == (("a", "b"), ("c",))
    gpus["b"] = ()  # nobody can ask b any more
    free = held_by([y], gpus)
    with pytest.raises(
        BusyError,
        match=r"x finds no place now that b is lost: .* on each of 2 hosts. Taken: GPU 0 of c by mesh y of this",
    ):
        replace_lost(plan, x, {"b"}, free, {}, plan.meshes)
    plan, gpus = plan_of("a:2 b:2 c:3", "x:4/2 y:1@c")
    again = replace_lost(plan, x, {"b"}, held_by([y], gpus), {}, plan.meshes)
    assert again.hosts == ("a", "c")
    assert {host: [g.visible for g in found] for host, found in again.gpus.items()} == {
        "a": ["0", "1"],
        "c": ["1", "2"],
    }


def test_slots_of_a_mesh_that_moves_are_free_again() -> None:
    plan, _ = plan_of("a:0#2 b:0#2 c:0#2", "x:4-/2 y:1-@c")
    with pytest.raises(BusyError, match=r"mesh x finds no place now that b is lost: .* c has 1 slot, beside the run's"):
        replace_lost(plan, plan.mesh("x"), {"b"}, {}, {}, plan.meshes)
    again = replace_lost(plan, plan.mesh("x"), {"b"}, {}, {}, [plan.mesh("x")])
    assert again.hosts == ("a", "c")


def test_a_mesh_that_names_its_hosts_cannot_leave_them() -> None:
    plan, _ = plan_of("a:0 b:0 c:0", "x:4-@c+b")
    with pytest.raises(UsageError, match="mesh x is to run on c, b, and b is lost") as caught:
        replace_lost(plan, plan.mesh("x"), {"b"}, {}, {})
    assert "hosts: N" in (caught.value.hint or "")
    assert replace_lost(plan, plan.mesh("x"), {"a"}, {}, {}).hosts == ("c", "b")


def test_where_no_host_is_left_and_for_a_driver_there_is_no_other_place() -> None:
    plan, _ = plan_of("a:0", "x:1-")
    with pytest.raises(UsageError, match=r"mesh x finds no place now that a is lost: .* the run has none for it"):
        replace_lost(plan, plan.mesh("x"), {"a"}, {}, {})
    with pytest.raises(UsageError, match="the driver runs on the launching machine"):
        replace_lost(plan, plan.mesh("driver"), {"a"}, {}, {})


@pytest.mark.thorough
@settings(max_examples=200, deadline=None)
@given(problems(), st.data())
def test_a_mesh_in_another_place_is_the_same_in_all_else(problem: Problem, data: st.DataObject) -> None:
    spec, facts = problem.case()
    try:
        plan = placed(spec, facts)
    except (SpecError, BusyError):
        return
    mesh = data.draw(st.sampled_from(plan.meshes))
    lost = data.draw(st.sets(st.sampled_from([h.name for h in plan.hosts])))
    others = replace(plan, meshes=tuple(m for m in plan.meshes if m is not mesh))
    free = held_by(others.meshes, {name: f.gpus for name, f in facts.items()})
    try:
        again = replace_lost(plan, mesh, lost, free, {}, plan.meshes)
    except (UsageError, BusyError):
        assert lost  # where nothing is lost, its own place is still there
        return
    assert lost.isdisjoint(again.hosts)
    assert _without_place(again) == _without_place(mesh)
    assert len({g.uuid for m in (again, *others.meshes) for found in m.gpus.values() for g in found}) == sum(
        len(found) for m in (again, *others.meshes) for found in m.gpus.values()
    )
    if not lost:
        assert not isinstance(mesh.unit.hosts, tuple) or replace(again, env=mesh.env) == mesh
    for host in plan.hosts:
        ranks = [len(m.ranks_on(host.name)) for m in (again, *others.meshes) if not any(m.gpus.values())]
        assert host.slots is None or sum(ranks) <= host.slots


def _without_place(mesh: MeshPlan) -> MeshPlan:
    ranks = tuple(replace(r, host="", local_rank=0, gpus=(), env={}) for r in mesh.ranks)
    return replace(mesh, hosts=(), ranks=ranks, env={}, gpus={}, python={})
