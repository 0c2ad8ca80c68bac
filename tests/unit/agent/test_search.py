"""Who belongs to a mesh, worked out from made-up process tables."""

import os
from dataclasses import replace

import pytest

from forgectl.agent.enclosure.search import Marks, Roots, sweep
from forgectl.system.processes import Identity, Stat
from tests.unit.agent.fake_processes import OURS, FakeTable

SERVER = {"FORGE_RUN_ID": "r", "FORGE_HOST": "h", "FORGE_ROLE": "forkserver"}


@pytest.fixture
def table() -> FakeTable:
    return FakeTable()


def found(table: FakeTable, roots: Roots | None = None, mesh: str | None = "m") -> list[int]:
    return [s.pid for s in sweep(table, Marks("r", "h", mesh), roots or Roots())]


def rooted(*leaders: Identity) -> Roots:
    by_pid = {i.pid: i for i in leaders}
    return Roots(members=dict(by_pid), sessions=dict(by_pid))


@pytest.mark.parametrize(
    ("environ", "mesh", "belongs"),
    [
        (OURS, "m", True),
        (OURS, None, True),
        ({**OURS, "FORGE_RUN_ID": "r2"}, "m", False),
        ({**OURS, "FORGE_HOST": "h2"}, "m", False),
        ({**OURS, "FORGE_MESH": "m2"}, "m", False),
        ({**OURS, "FORGE_MESH": "m2"}, None, True),
        ({**OURS, "FORGE_ROLE": "forkserver"}, "m", False),
        ({**OURS, "FORGE_ROLE": "controller"}, "m", False),
        ({**OURS, "FORGE_ROLE": "agent"}, None, False),
        ({**OURS, "FORGE_ROLE": "store"}, None, True),
        (SERVER, "m", False),
        (SERVER, None, True),
        ({"X_FORGE_RUN_ID": "r", "FORGE_HOST": "h", "FORGE_MESH": "m"}, "m", False),
        ({}, None, False),
    ],
)
def test_by_environment(table: FakeTable, environ: dict[str, str], mesh: str | None, belongs: bool) -> None:
    table.add(50, environ)
    assert found(table, mesh=mesh) == ([50] if belongs else [])


def test_descendants_parents_first(table: FakeTable) -> None:
    table.add(52, OURS)
    table.add(51, ppid=52, start_time=101)
    table.add(50, ppid=51, start_time=102)
    assert found(table) == [52, 51, 50]


def test_a_forked_rank_belongs_though_its_environment_is_its_fork_servers(table: FakeTable) -> None:
    table.add(40, SERVER)
    rank = table.add(50, SERVER, ppid=40)
    table.add(51, SERVER, ppid=50, start_time=101)
    table.add(60, SERVER, ppid=40)  # a rank of another mesh
    assert found(table, rooted(rank)) == [50, 51]


def test_a_session_outlives_its_leader(table: FakeTable) -> None:
    rank = table.add(50)
    table.add(51, ppid=50, session=50)
    roots = rooted(rank)
    table.remove(50)
    assert found(table, roots) == [51]


def test_a_session_that_ended_is_forgotten_before_its_number_is_reused(table: FakeTable) -> None:
    rank = table.add(50)
    roots = rooted(rank)
    table.remove(50)
    assert found(table, roots) == []
    table.add(50, start_time=900)
    table.add(51, session=50, start_time=901)
    assert found(table, roots) == []
    table.remove(50)
    assert found(table, roots) == []


def test_a_leaders_pid_reused_unseen_is_a_strangers(table: FakeTable) -> None:
    rank = table.add(50)
    roots = rooted(rank)
    table.remove(50)
    table.add(50, start_time=900)
    table.add(51, ppid=50, session=50, start_time=901)
    assert found(table, roots) == []


def test_a_zombie_leader_keeps_its_session_but_is_no_member(table: FakeTable) -> None:
    rank = table.add(50, state="Z")
    table.add(51, session=50)
    assert found(table, rooted(rank)) == [51]


def test_what_was_seen_once_is_not_lost(table: FakeTable) -> None:
    rank = table.add(50)
    table.add(51, ppid=50, session=50)
    table.add(52, ppid=51, session=52)  # in a session of its own, and soon an orphan
    roots = rooted(rank)
    assert found(table, roots) == [50, 51, 52]
    table.remove(50)
    table.remove(51)
    assert found(table, roots) == [52]


def test_children_of_a_server_of_ours_alone_but_not_the_spared(table: FakeTable) -> None:
    server = table.add(40, SERVER)
    store = table.add(41, ppid=40)
    table.add(42, ppid=41)
    table.add(43, ppid=40)
    table.add(44, ppid=43)
    roots = Roots(servers={40: server}, spared={41: store})
    assert found(table, roots) == [43, 44]
    table.remove(40)
    table.add(40, start_time=900)
    table.add(45, ppid=40, start_time=901)
    assert found(table, roots) == [43, 44]


def test_never_this_process_nor_its_ancestors(table: FakeTable) -> None:
    table.add(1, OURS, ppid=0, start_time=1)
    table.add(30, OURS, ppid=1, start_time=2)
    table.add(os.getpid(), OURS, ppid=30, start_time=5)
    child = os.getpid() + 1
    table.add(child, OURS, ppid=os.getpid(), start_time=6)
    assert found(table) == [child]
    assert found(table, mesh=None) == [child]


def test_what_only_a_nested_agent_started_is_left_to_it(table: FakeTable) -> None:
    rank = table.add(50)
    table.add(51, {"FORGE_RUN_ID": "r2", "FORGE_ROLE": "agent"}, ppid=50, session=51, start_time=101)
    table.add(52, {"FORGE_RUN_ID": "r2"}, ppid=51, session=52, start_time=102)
    assert found(table, rooted(rank)) == [50]


def test_a_parent_younger_than_its_child_is_none(table: FakeTable) -> None:
    table.add(50, ppid=60, start_time=100)
    table.add(60, OURS, start_time=200)
    assert found(table) == [60]


def test_an_identity_of_another_boot_is_forgotten(table: FakeTable) -> None:
    it = table.add(50)
    assert found(table, rooted(Identity(it.pid, it.start_time, "boot-0"))) == []


def test_one_that_is_just_being_executed_is_not_missed(table: FakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    table.add(50, OURS)
    reads: list[int] = []
    real = table.environ

    def empty_at_first(pid: int) -> bytes:
        reads.append(pid)
        return real(pid) if reads.count(pid) > 1 else b""

    monkeypatch.setattr(table, "environ", empty_at_first)
    assert found(table) == [50]


def test_one_that_forks_and_is_gone_before_it_is_read_leaves_a_child_that_is_found(
    table: FakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add(50, OURS)
    hops, real = iter(range(51, 56)), table.stat

    def hop(pid: int) -> Stat | None:
        if 50 <= pid < 55 and (child := next(hops)):
            table.remove(pid)
            table.add(child, OURS, start_time=100 + child)
        return real(pid)

    monkeypatch.setattr(table, "stat", hop)
    assert found(table) == [55]


def test_what_is_plainly_ours_is_told_of_at_sight(table: FakeTable) -> None:
    rank = table.add(50)
    table.add(51, ppid=50, start_time=101)
    table.add(52, OURS)
    table.add(53, {**OURS, "FORGE_ROLE": "agent"})
    table.add(54, OURS, state="Z")
    seen: list[int] = []
    sweep(table, Marks("r", "h", "m"), rooted(rank), lambda i: seen.append(i.pid))
    assert set(seen) == {50, 52}


def test_kernel_threads_are_no_ones(table: FakeTable) -> None:
    table.add(50, OURS)
    table.stats[50] = replace(table.stats[50], kernel=True)
    assert found(table) == []
