"""What an enclosure does about processes that cannot be had on demand: unkillable, racing, without pidfds."""

import asyncio
import errno
import signal

import pytest

from forgectl.agent.enclosure.enclosure import Enclosure, Sighting
from tests.unit.agent.fake_processes import OURS, FakeTable


def enclosure(table: FakeTable) -> Enclosure:
    return Enclosure.create("r", "h", "m", 0, use_cgroup=False, table=table)


def test_one_in_uninterruptible_sleep_is_reported_in_bounded_time() -> None:
    table = FakeTable()
    stuck = table.add(50, OURS, state="D")
    table.add(51, OURS)
    report = asyncio.run(enclosure(table).end(0, unkillable_after=0.1))
    assert report.unkillable == (Sighting(stuck, "python", "D", "nfs_wait_bit_killable", 1000),)
    assert str(report.unkillable[0]) == "pid 50 (python), state D in nfs_wait_bit_killable, of uid 1000"
    assert report.killed == len(report.found) == 2
    assert 51 not in table.stats
    assert signal.SIGKILL in [number for pid, number in table.signals if pid == 50]


def test_one_that_gets_unstuck_in_time_is_not_reported() -> None:
    table = FakeTable()
    table.add(50, OURS, state="D")
    scans: list[None] = []

    def unstick() -> None:
        scans.append(None)
        if len(scans) == 6:
            table.add(50, OURS, state="S")

    table.on_scan = unstick
    report = asyncio.run(enclosure(table).end(0, unkillable_after=60))
    assert report.unkillable == ()
    assert 50 not in table.stats


def test_one_that_may_not_be_signalled_is_reported_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    table = FakeTable()
    table.add(50, OURS, name="sudo")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(table, "send", refuse)
    report = asyncio.run(enclosure(table).end(0, unkillable_after=0.1))
    assert [str(s) for s in report.unkillable] == ["pid 50 (sudo), state S, of uid 1000"]


def test_those_that_fork_while_they_are_stopped_are_all_found() -> None:
    table = FakeTable()
    table.add(50, OURS)
    births = iter(range(51, 60))

    def bear() -> None:
        running = [s for s in table.stats.values() if s.state == "S" and table.environs[s.pid]]
        if running and (pid := next(births, None)):
            table.add(pid, OURS, ppid=running[0].pid, start_time=100 + pid)

    it = enclosure(table)
    table.on_scan = bear
    it.kill()
    assert [pid for pid in table.stats if table.environs[pid]] == []
    first_kill = table.signals.index((50, signal.SIGKILL))
    assert all(number == signal.SIGKILL for _, number in table.signals[first_kill:]), "stopped first, all of them"


def test_term_then_continue_parents_first() -> None:
    table = FakeTable()
    table.add(51, OURS, state="T")
    table.add(50, OURS, ppid=51, start_time=101)
    asyncio.run(enclosure(table).end(0.001))
    expected = [(pid, number) for pid in (51, 50) for number in (signal.SIGTERM, signal.SIGCONT)]
    assert table.signals[:4] == expected


def test_an_order_to_hurry_may_come_before_the_end_has_begun() -> None:
    """Both Ctrl-Cs may reach an agent at once."""
    table = FakeTable()
    table.add(50, OURS)

    async def main() -> None:
        hurried = enclosure(table)
        hurried.hurry()
        await asyncio.wait_for(hurried.end(3600), 60)

    asyncio.run(main())
    assert [number for pid, number in table.signals if pid == 50][-1] == signal.SIGKILL


def test_without_pidfds_the_end_is_still_seen() -> None:
    table = FakeTable()
    table.no_pidfds = OSError(errno.ENOSYS, "")
    table.add(50, OURS)
    scans: list[None] = []

    def leave() -> None:
        scans.append(None)
        if len(scans) == 5:
            table.remove(50)

    table.on_scan = leave
    report = asyncio.run(enclosure(table).end(600))
    assert (len(report.found), report.killed) == (1, 0)


def test_a_leader_whose_pid_is_reused_is_no_member() -> None:
    table = FakeTable()
    it = enclosure(table)
    it.add(table.add(50, start_time=7))
    assert it.members() == [it.leaders[0]]
    table.add(50, start_time=8)
    assert it.members() == []
    asyncio.run(it.end(0))
    assert table.signals == []
