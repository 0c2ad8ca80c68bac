"""What holds for every plan, and that exactly the specs that fit are planned."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.errors import BusyError, SpecError
from forgectl.model.plan import HostFacts, Plan
from forgectl.spec.model import Spec
from forgectl.wire.codec import from_json, to_json
from tests.unit.plan.plan_cases import case, placed


@dataclass(frozen=True)
class Mesh:
    procs: int
    gpus: bool
    hosts: tuple[str, ...] | int | None


@dataclass(frozen=True)
class Problem:
    """Hosts by name as (machine, GPUs, indices held by others), their slots, and meshes for them."""

    hosts: dict[str, tuple[str, int, tuple[int, ...]]]
    slots: dict[str, int | None]
    meshes: tuple[Mesh, ...]

    def case(self) -> tuple[Spec, dict[str, HostFacts]]:
        hosts = " ".join(
            f"{name}={machine}:{count}" + ("!" + "".join(map(str, held)) if held else "") + self._slots(name)
            for name, (machine, count, held) in self.hosts.items()
        )
        meshes = " ".join(f"x{i}:{m.procs}{'' if m.gpus else '-'}" + self._on(m) for i, m in enumerate(self.meshes))
        return case(hosts, meshes)

    def _slots(self, host: str) -> str:
        return "" if self.slots[host] is None else f"#{self.slots[host]}"

    @staticmethod
    def _on(mesh: Mesh) -> str:
        if isinstance(mesh.hosts, tuple):
            return "@" + "+".join(mesh.hosts)
        return f"/{mesh.hosts}" if mesh.hosts else ""

    def room(self, *, held_count: bool) -> dict[str, int]:
        return {machine: count - (0 if held_count else len(held)) for machine, count, held in self.hosts.values()}

    def fits(self, room: dict[str, int]) -> bool:
        """By trying every choice of hosts for every mesh: GPUs of a machine are alike, so counts will do."""
        left = Counter({("machine", machine): count for machine, count in room.items()})
        for host, slots in self.slots.items():
            left["slots of GPUs", host] = left["slots", host] = 99 if slots is None else slots
        return self._fits(left, self.meshes)

    def _fits(self, room: Counter[tuple[str, str]], meshes: tuple[Mesh, ...]) -> bool:
        first, *others = meshes
        for hosts in self._choices(first):
            left = Counter(room)
            for host in hosts:
                left["slots of GPUs" if first.gpus else "slots", host] -= first.procs // len(hosts)
                left["machine", self.hosts[host][0]] -= first.procs // len(hosts) if first.gpus else 0
            if min(left.values()) >= 0 and (not others or self._fits(left, tuple(others))):
                return True
        return False

    def _choices(self, mesh: Mesh) -> list[tuple[str, ...]]:
        if isinstance(mesh.hosts, tuple):
            return [mesh.hosts]
        counts = [mesh.hosts] if mesh.hosts else range(1, len(self.hosts) + 1)
        return [c for n in counts if mesh.procs % n == 0 for c in itertools.combinations(self.hosts, n)]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    names = "abcd"[: draw(st.integers(1, 4))]
    machines: dict[str, tuple[int, tuple[int, ...]]] = {}
    hosts = {}
    for name in names:
        machine = draw(st.sampled_from([*machines, f"m{name}"]))
        if machine not in machines:
            count = draw(st.integers(0, 6))
            held = draw(st.sets(st.integers(0, count - 1), max_size=2)) if count else set()
            machines[machine] = (count, tuple(sorted(held)))
        hosts[name] = (machine, *machines[machine])
    slots = {name: draw(st.none() | st.integers(0, 6)) for name in names}
    meshes = []
    for _ in range(draw(st.integers(1, 5))):
        spread = draw(
            st.one_of(
                st.none(),
                st.integers(1, len(names)),
                st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple),
            )
        )
        count = len(spread) if isinstance(spread, tuple) else spread or 1
        meshes.append(Mesh(count * draw(st.integers(1, 4)), draw(st.booleans()), spread))
    return Problem(hosts, slots, tuple(meshes))


@pytest.mark.thorough
@settings(max_examples=400, deadline=None)
@given(problems())
def test_a_plan_is_made_exactly_where_one_exists(problem: Problem) -> None:
    spec, facts = problem.case()
    try:
        placed(spec, facts)
        outcome = "planned"
    except SpecError:
        outcome = "never"
    except BusyError:
        outcome = "busy"
    expected = (
        "planned"
        if problem.fits(problem.room(held_count=False))
        else "busy"
        if problem.fits(problem.room(held_count=True))
        else "never"
    )
    assert outcome == expected


@pytest.mark.thorough
@settings(max_examples=400, deadline=None)
@given(problems())
def test_every_plan_is_whole_even_exclusive_and_the_same_again(problem: Problem) -> None:
    spec, facts = problem.case()
    try:
        plan = placed(spec, facts)
    except (SpecError, BusyError):
        return
    for host, slots in problem.slots.items():
        taken = Counter(any(mesh.gpus.values()) for mesh in plan.meshes for _ in mesh.ranks_on(host))
        assert slots is None or max(taken.values(), default=0) <= slots
    leased = [g for mesh in plan.meshes for gpus in mesh.gpus.values() for g in gpus]
    assert len({g.uuid for g in leased}) == len(leased)
    assert all(g.holder is None for g in leased)
    for mesh, wanted in zip(plan.meshes, problem.meshes, strict=True):
        assert [r.rank for r in mesh.ranks] == list(range(wanted.procs))
        each = wanted.procs // len(mesh.hosts)
        assert [(r.host, r.local_rank) for r in mesh.ranks] == [(h, i) for h in mesh.hosts for i in range(each)]
        assert len(set(mesh.hosts)) == len(mesh.hosts)
        for host in mesh.hosts:
            assert set(mesh.gpus[host]) <= set(facts[host].gpus)
            own = [r.gpus for r in mesh.ranks_on(host)]
            assert own == ([(g.visible,) for g in mesh.gpus[host]] if wanted.gpus else [()] * each)
            assert mesh.env[host]["FORGE_HOST"] == host
        if isinstance(wanted.hosts, tuple):
            assert mesh.hosts == wanted.hosts
        elif wanted.hosts:
            assert len(mesh.hosts) == wanted.hosts
    assert {h.name for h in plan.hosts} == {h for m in plan.meshes for h in m.hosts}
    assert placed(spec, facts) == plan
    assert from_json(Plan, to_json(plan)) == plan
