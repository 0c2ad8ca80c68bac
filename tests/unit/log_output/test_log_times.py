"""When the lines of logs were written: noted by an agent's clock, read again, and logs merged by it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.agent.log_clock import LogClock
from forgectl.log_output import log_stream
from forgectl.log_output.log_stream import LogSource, LogStream, read_all
from forgectl.system.log_times import SAMPLE, LogTimes, append_samples, times_path


def write(log: Path, clock: LogClock, data: bytes, when: float) -> None:
    """Write to a log at a time, and have the clock note it."""
    with log.open("ab") as file:
        file.write(data)
    os.utime(log, ns=(0, int(when * 1e9)))
    clock.note()


class Logs:
    """Logs whose writes are noted."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.sources = [LogSource(f"m/{n}", folder / f"rank-{n}.log") for n in range(count)]
        self.clock = LogClock()
        for source in self.sources:
            self.clock.add(source.path)

    def write(self, rank: int, data: bytes, when: float) -> None:
        write(self.sources[rank].path, self.clock, data, when)

    def lines(self, **how: float) -> list[tuple[str, bytes, float]]:
        chunks = read_all(self.sources, **how)  # type: ignore[arg-type]
        return [(c.source.label, line, c.when) for c in chunks for line in c.data.splitlines()]


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_lines_of_several_logs_come_by_time(logs: Logs) -> None:
    logs.write(0, b"a\n", 10)
    logs.write(1, b"b\n", 11)
    logs.write(1, b"c\nd\n", 12)
    logs.write(0, b"e\n", 13.5)
    assert logs.lines() == [
        ("m/0", b"a", 10), ("m/1", b"b", 11), ("m/1", b"c", 12), ("m/1", b"d", 12), ("m/0", b"e", 13.5),
    ]  # fmt: skip


def test_a_line_has_the_time_of_its_end(logs: Logs) -> None:
    logs.write(0, b"one\ntw", 10)
    logs.write(1, b"between\n", 11)
    logs.write(0, b"o\n", 12)
    assert [line for _, line, _ in logs.lines()] == [b"one", b"between", b"two"]
    assert [line for _, line, _ in logs.lines(since=10)] == [b"between", b"two"]
    assert [line for _, line, _ in logs.lines(until=11)] == [b"one", b"between"]


def test_since_and_until(logs: Logs) -> None:
    for n in range(10):
        logs.write(n % 2, b"%d\n" % n, 100 + n)
    seen = {
        (s, u): b"".join(x for _, x, _ in logs.lines(since=s, until=u)) for s in (0, 102.5, 200) for u in (0, 106, 200)
    }
    assert seen == {
        (0, 0): b"", (0, 106): b"0123456", (0, 200): b"0123456789",
        (102.5, 0): b"", (102.5, 106): b"3456", (102.5, 200): b"3456789",
        (200, 0): b"", (200, 106): b"", (200, 200): b"",
    }  # fmt: skip
    last = b"".join(c.data for c in read_all(logs.sources, 1, until=105))
    assert last == b"4\n5\n"


def test_what_is_not_noted_yet_has_the_time_of_the_last_write(logs: Logs) -> None:
    logs.write(0, b"a\n", 10)
    with logs.sources[0].path.open("ab") as file:
        file.write(b"b\n")
    os.utime(logs.sources[0].path, ns=(0, 20 * 10**9))
    assert [when for _, _, when in logs.lines()] == [10, 20]
    assert [line for _, line, _ in logs.lines(since=10)] == [b"b"]


def test_a_log_without_times_is_shown_whole(tmp_path: Path) -> None:
    source = LogSource("m/0", tmp_path / "rank-0.log")
    source.path.write_bytes(b"a\nb\n")
    os.utime(source.path, ns=(0, 10 * 10**9))
    assert [(c.data, c.when) for c in read_all([source])] == [(b"a\nb\n", 10)]
    assert [c.data for c in read_all([source], since=5)] == [b"a\nb\n"]
    assert list(read_all([source], since=10)) == []


def test_the_clock_notes_only_growth_and_never_an_earlier_time(logs: Logs) -> None:
    logs.write(0, b"a\n", 10)
    logs.clock.note()
    logs.write(0, b"b\n", 7)  # somebody set the clock back
    assert times_path(logs.sources[0].path).read_bytes() == SAMPLE.pack(2, 10**10) + SAMPLE.pack(4, 10**10)
    assert not times_path(logs.sources[1].path).exists()


def test_a_torn_sample_is_not_read(logs: Logs) -> None:
    logs.write(0, b"a\n", 10)
    path = times_path(logs.sources[0].path)
    path.write_bytes(path.read_bytes() + b"\1\2\3")
    assert [when for _, _, when in logs.lines()] == [10]


def test_following_orders_what_comes_and_what_was_there(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the reads: a log that is far behind holds back what the other wrote later."""
    for n in range(400):
        logs.write(0, b"0 %d\n" % n, n)
    logs.write(1, b"1 0\n", 0.5)
    logs.write(1, b"1 399\n", 398.5)
    stream = LogStream(merged=True, most=64)
    for source in logs.sources:
        stream.add(source)
    seen: list[float] = []
    while new := list(stream.poll()):
        seen += [c.when for c in new]
    assert len(seen) >= 402
    assert seen == sorted(seen)
    logs.write(1, b"later\n", 500)
    logs.write(0, b"latest\n", 501)
    assert [c.data for c in stream.poll()] == [b"later\n", b"latest\n"]
    stream.end()
    assert list(stream.poll()) == []
    assert stream.done


@pytest.mark.thorough
@settings(deadline=None)
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 2), st.text("ab\r\n", max_size=40).map(str.encode), st.integers(1, 5)), max_size=30
    ),
    most=st.integers(1, 50),
)
def test_nothing_is_lost_or_reordered_within_a_log(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes, int]], most: int
) -> None:
    logs, now, wrote = Logs(tmp_path_factory.mktemp("logs"), 3), 0, dict.fromkeys(range(3), b"")
    for rank, data, later in writes:
        now += later
        logs.write(rank, data, now)
        wrote[rank] += data
    stream = LogStream(merged=True, most=most)
    for source in logs.sources:
        stream.add(source)
    stream.end()
    read = dict.fromkeys(range(3), b"")
    times: list[float] = []
    while not stream.done:
        for chunk in stream.poll():
            read[int(chunk.source.label[2:])] += chunk.data
            times.append(chunk.when)
    assert read == wrote
    assert times == sorted(times)


def test_samples_are_found_by_halving(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    samples = [(n * 10, n * 10**9) for n in range(1, 10_000)]
    append_samples(log, b"".join(SAMPLE.pack(*s) for s in samples))
    times = LogTimes(log)
    assert times.last() == samples[-1]
    assert times.size_at(1234.5, 10**6, 10**6) == 12340
    assert [s for s, _ in SAMPLE.iter_unpack(times.packed(500, 530, 99))] == [500, 510, 520, 530]
    assert len(times.packed(0, 10**6, 64)) == 64 * SAMPLE.size
    assert list(times.pieces(15, b"x" * 10, 9.0)) == [(b"x" * 5, 2.0), (b"x" * 5, 3.0)]


def test_many_logs_are_merged_in_little_memory(tmp_path: Path) -> None:
    assert log_stream.SMALL * 4096 <= 64 << 20
    logs = Logs(tmp_path, 64)
    for n in range(64):
        logs.write(n, b"%d\n" % n, 64 - n)
    assert [line for _, line, _ in logs.lines()] == [b"%d" % n for n in reversed(range(64))]
