"""Meshes that share the GPUs of another: where they run and which GPUs they see, from the start and later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgectl.errors import BusyError, SpecError, UsageError
from forgectl.model.plan import MeshPlan, Plan
from forgectl.plan.addition import held_by, place_more, replace_lost
from forgectl.plan.sharing import sharers
from forgectl.wire.codec import from_json, to_json
from tests.unit.plan.plan_cases import hosts_of, notation_of, placed, spec_of
from tests.unit.plan.test_addition import plan_of, unit


def planned(hosts: str, more: str) -> Plan:
    line, facts = hosts_of(hosts)
    return placed(spec_of(line + more), facts)


@pytest.mark.parametrize(
    ("hosts", "owner", "guest", "found"),
    [
        ("a:4", "procs: 4", "procs: 4", "guest=a0123 owner=a0123"),
        ("a:4", "procs: 4", "procs: 2", "guest=a01 owner=a0123"),  # only those that its ranks use
        ("a:4", "procs: 2", "procs: 5", "guest=a01 owner=a01"),
        ("a:2 b:2", "procs: 4, hosts: [b, a]", "procs: 4", "guest=b01,a01 owner=b01,a01"),
        ("a:2 b:2", "procs: 4, hosts: 2", "procs: 2", "guest=a0,b0 owner=a01,b01"),
        ("a:2 b:2", "procs: 4, hosts: 2", "procs: 1", "guest=a0 owner=a01,b01"),
        ("a:2 b:2", "procs: 4, hosts: 2", "procs: 2, hosts: 1", "guest=a01 owner=a01,b01"),
        ("a:2 b:2", "procs: 4, hosts: 2", "procs: 2, hosts: [b]", "guest=b01 owner=a01,b01"),
        ("a:2!0", "procs: 1", "procs: 1", "guest=a1 owner=a1"),
        ("a:2#1", "procs: 1", "procs: 3", "guest=a0 owner=a0"),  # it takes no slot
    ],
)
def test_local_rank_i_uses_the_owner_s_gpu_i_modulo_their_number(
    hosts: str, owner: str, guest: str, found: str
) -> None:
    plan = planned(
        hosts,
        f"scripts:\n  guest: {{command: x, {guest}, share_gpus_with: owner}}\n"
        f"  owner: {{command: x, {owner}, with_gpus: true}}\n",
    )
    assert notation_of(plan) == found
    mesh = plan.mesh("guest")
    for rank in mesh.ranks:
        seen = [gpu.visible for gpu in mesh.gpus[rank.host]]
        assert rank.env["CUDA_VISIBLE_DEVICES"] == ",".join(seen)
        assert rank.gpus == (seen[rank.local_rank % len(seen)],)


def test_others_get_none_of_the_shared_gpus() -> None:
    text = "scripts: {b: {command: x, share_gpus_with: a}, a: {command: x, with_gpus: true}, c: {command: x, %s}}"
    assert notation_of(planned("h:2", text % "with_gpus: true")) == "b=h0 a=h0 c=h1"
    with pytest.raises(SpecError, match="wants 1 GPU, but h has 2 GPUs"):
        planned("h:2", text % "procs: 2, with_gpus: true")


def test_who_shares_with_one_that_shares_uses_the_same() -> None:
    text = "scripts: {c: {command: x, share_gpus_with: b}, b: {command: x, procs: 2, share_gpus_with: a}, "
    plan = planned("h:3", text + "a: {command: x, procs: 3, with_gpus: true}}")
    assert notation_of(plan) == "c=h0 b=h01 a=h012"
    assert sharers("a", plan.meshes) == {"b", "c"}
    assert sharers("c", plan.meshes) == set()


def test_replicas_take_hosts_and_gpus_in_turn() -> None:
    text = "actors: {t: {class: m:C, procs: 4, hosts: 2, with_gpus: true}}\nservices: {s: {class: m:C, %s}}\n"
    plan = planned("a:2 b:2", text % "num_replicas: 5, share_gpus_with: t")
    assert notation_of(plan).split()[1:-1] == ["s.0=a0", "s.1=b0", "s.2=a1", "s.3=b1", "s.4=a0"]
    plan = planned("a:2 b:2", text % "num_replicas: 2, procs: 2, share_gpus_with: t, hosts: [b]")
    assert notation_of(plan).split()[1:-1] == ["s.0=b01", "s.1=b01"]


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ("[c]", "3:64: scripts.guest.hosts: owner has no GPUs on c; it is on a, b"),
        ("3", "3:64: scripts.guest.hosts: wants 3 hosts, but owner is on 2: a, b"),
    ],
)
def test_other_hosts_are_a_problem_of_the_spec(hosts: str, said: str) -> None:
    text = f"  guest: {{command: x, procs: 3, share_gpus_with: owner, hosts: {hosts}}}\n"
    with pytest.raises(SpecError) as caught:
        planned("a:1 b:1 c:1", f"scripts:\n{text}  owner: {{command: x, procs: 2, with_gpus: true, hosts: [a, b]}}\n")
    [problem] = caught.value.problems
    assert f"{problem.line}:{problem.column}: {problem.where}: {problem.message}" == said


def test_nothing_is_said_of_the_shares_of_what_found_no_room() -> None:
    text = "scripts: {b: {command: x, share_gpus_with: a}, a: {command: x, procs: 3, with_gpus: true}}"
    with pytest.raises(SpecError) as caught:
        planned("h:2", text)
    assert [p.where for p in caught.value.problems] == ["scripts.a.procs"]


# ---------------------------------------------------------------- later


def guest(procs: int, owner: str = "x") -> MeshPlan:
    plan, _ = plan_of("a:2 b:2 c:2", "x:4@a+b y:1@c z:1-")
    return place_more(plan, replace(unit(procs), share_gpus_with=owner), {}, {}, plan.meshes)


def test_code_adds_one_that_shares() -> None:
    added = guest(4)
    assert [[g.visible for g in gpus] for gpus in added.gpus.values()] == [["0", "1"], ["0", "1"]]
    assert added.hosts == ("a", "b")
    assert added.unit.share_gpus_with == "x"


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ("nobody", "share the GPUs of nobody, which does not run in this run; meshes with GPUs: x, y"),
        ("z", "share the GPUs of z, which has none"),
    ],
)
def test_code_is_told_what_it_cannot_share(owner: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        guest(1, owner)


def test_gpus_count_once_however_many_meshes_use_them() -> None:
    plan, gpus = plan_of("a:4#3", "x:2")
    added = place_more(plan, replace(unit(4), share_gpus_with="x"), {}, {}, plan.meshes)
    living = (*plan.meshes, added)
    held = held_by(living, gpus)
    assert [g.holder for g in held["a"]] == ["mesh x of this run", "mesh x of this run", None, None]
    assert place_more(plan, unit(1, gpus=True), held, {}, living).gpus["a"][0].visible == "2"
    with pytest.raises(BusyError):  # three slots, and two of its GPUs are in use
        place_more(plan, unit(2, gpus=True), held, {}, living)


def test_both_move_when_a_host_is_lost() -> None:
    plan, gpus = plan_of("a:2 b:2 c:2", "x:4/2")
    owner = plan.mesh("x")
    added = place_more(plan, replace(unit(4), share_gpus_with="x"), {}, {}, plan.meshes)
    moved = replace_lost(plan, owner, {"b"}, gpus, {}, [owner, added])
    assert moved.hosts == ("a", "c")
    follows = replace_lost(plan, added, {"b"}, {}, {}, [moved, added])
    assert (follows.hosts, follows.gpus) == (moved.hosts, moved.gpus)
    assert follows.unit == added.unit
    with pytest.raises(UsageError, match=r"mesh m finds no place now that b is lost: .* which does not run"):
        replace_lost(plan, added, {"b"}, {}, {}, [added])


def test_its_json_has_the_key_only_where_it_shares() -> None:
    added = guest(4)
    assert to_json(added)["share_gpus_with"] == "x"
    assert from_json(MeshPlan, to_json(added)) == added
    plan, _ = plan_of("a:2", "x:2")
    assert "share_gpus_with" not in to_json(plan.mesh("x"))
    assert from_json(MeshPlan, to_json(plan.mesh("x"))) == plan.mesh("x")
