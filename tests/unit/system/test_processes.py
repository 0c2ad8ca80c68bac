"""Exact identity, against a made-up process table."""

import errno
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.system.processes import Identity, alive, identify, open_pidfd, parse_stat, signal_exactly
from tests.unit.agent.fake_processes import BOOT, FakeTable

LINE = b"%d (%s) %c 7 8 9 0 -1 %d 1 2 3 4 5 6 7 8 20 0 %d 0 123456 1000 200 18446744073709551615 1 1 0 0\n"


@given(
    st.integers(1, 2**22),
    st.binary(max_size=63).filter(lambda n: b"\0" not in n),
    st.sampled_from(b"RSDTtZXI"),
)
def test_any_name_can_be_parsed(pid: int, name: bytes, state: int) -> None:
    stat = parse_stat(LINE % (pid, name, state, 0x400100, 3))
    assert (stat.pid, stat.state, stat.ppid, stat.session) == (pid, chr(state), 7, 9)
    assert (stat.threads, stat.start_time, stat.kernel) == (3, 123456, False)
    assert stat.name == name.decode(errors="replace")


def test_kernel_threads_are_known_by_their_flag() -> None:
    assert parse_stat(LINE % (2, b"kthreadd", ord("S"), 0x208040, 1)).kernel


@pytest.mark.parametrize(
    ("state", "threads", "living"),
    [("S", 1, True), ("D", 1, True), ("T", 1, True), ("Z", 1, False), ("Z", 2, True)],
)
def test_a_zombie_is_dead_unless_a_thread_lives_on(state: str, threads: int, living: bool) -> None:
    table = FakeTable()
    assert alive(table.add(50, state=state, threads=threads), table) is living


def test_identify() -> None:
    table = FakeTable()
    assert identify(50, table) is None
    assert table.add(50, start_time=7) == identify(50, table) == Identity(50, 7, BOOT)


@pytest.mark.parametrize("wrong", [Identity(50, 8, BOOT), Identity(50, 7, "boot-0"), Identity(51, 7, BOOT)])
def test_whoever_it_is_not_is_neither_alive_nor_signalled(wrong: Identity) -> None:
    table = FakeTable()
    table.add(50, start_time=7)
    assert not alive(wrong, table)
    assert open_pidfd(wrong, table) is None
    assert not signal_exactly(wrong, signal.SIGKILL, table)
    assert table.signals == []


@pytest.mark.parametrize("pid", [0, -1, -50])
def test_no_process_group_is_ever_signalled(pid: int) -> None:
    table = FakeTable()
    table.no_pidfds = OSError(errno.ENOSYS, "")
    table.stats[pid] = table.stats[os.getpid()]
    assert not signal_exactly(Identity(pid, 5, BOOT), signal.SIGKILL, table)
    assert table.signals == []


def test_a_pid_reused_while_its_pidfd_is_opened_is_spared_and_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = FakeTable()
    old = table.add(50, start_time=7)
    opened: list[int] = []

    def reuse_then_open(pid: int) -> int:
        table.remove(pid)
        table.add(pid, start_time=8)
        opened.append(os.eventfd(0))
        return opened[-1]

    monkeypatch.setattr(table, "open", reuse_then_open)
    assert not signal_exactly(old, signal.SIGKILL, table)
    assert table.signals == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(*opened)


def test_a_pid_reused_after_its_pidfd_was_checked_is_spared() -> None:
    table = FakeTable()
    old = table.add(50, start_time=7)
    pidfd = open_pidfd(old, table)
    assert pidfd is not None
    table.remove(50)
    table.add(50, start_time=8)
    with pytest.raises(ProcessLookupError):
        table.send(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_without_pidfds_the_number_is_checked_and_used() -> None:
    table = FakeTable()
    table.no_pidfds = OSError(errno.EMFILE, "")
    it = table.add(50, start_time=7)
    assert signal_exactly(it, signal.SIGTERM, table)
    assert not signal_exactly(Identity(50, 8, BOOT), signal.SIGTERM, table)
    assert table.signals == [(50, signal.SIGTERM)]


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
@pytest.mark.parametrize("pidfds", [True, False])
def test_one_that_cannot_be_reached_is_told_by_the_answer(
    error: type[OSError], pidfds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = FakeTable()
    it = table.add(50)

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(table, "send", refuse)
    monkeypatch.setattr(table, "kill", refuse)
    table.no_pidfds = None if pidfds else OSError(errno.ENOSYS, "")
    assert not signal_exactly(it, signal.SIGTERM, table)
