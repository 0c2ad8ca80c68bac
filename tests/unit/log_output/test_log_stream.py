"""Following logs: what is handed on, when, and in how much memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.log_output.log_file import CHUNK
from forgectl.log_output.log_stream import LONGEST_LINE, PATIENCE, PROGRESS_EVERY, LogSource, LogStream, read_all
from forgectl.system.log_cap import LogCap, Trimmed


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(tmp_path: Path) -> LogSource:
    return LogSource("mesh/0@local", tmp_path / "rank-0.log")


def append(source: LogSource, data: bytes) -> None:
    with source.path.open("ab") as file:
        file.write(data)


def poll(stream: LogStream) -> bytes:
    return b"".join(chunk.data for chunk in stream.poll())


def all_of(*sources: LogSource, last: int | None = None) -> bytes:
    return b"".join(chunk.data for chunk in read_all(sources, last))


def punch(source: LogSource, limit: int) -> int:
    """Cap the log; the bytes that are gone. Skips, loudly, where the file system has no holes."""
    (result,) = LogCap(limit).check([source.path])
    if not isinstance(result, Trimmed):
        pytest.skip(f"no holes on this file system: {result.reason}")
    return result.dropped


def test_whole_lines_are_handed_on_as_they_come(source: LogSource, clock: Clock) -> None:
    stream = LogStream(clock=clock)
    stream.add(source)
    assert poll(stream) == b""
    append(source, b"one\ntw")
    assert poll(stream) == b"one\n"
    append(source, b"o\nthree\n")
    assert poll(stream) == b"two\nthree\n"
    assert poll(stream) == b""


def test_an_unfinished_line_waits_a_moment_then_shows(source: LogSource, clock: Clock) -> None:
    stream = LogStream(clock=clock)
    stream.add(source)
    append(source, b"Continue? ")
    assert poll(stream) == b""
    clock.now += PATIENCE
    assert poll(stream) == b"Continue? "
    append(source, b"yes\n")
    assert poll(stream) == b"yes\n"


def test_dots_written_slowly_are_live(source: LogSource, clock: Clock) -> None:
    stream = LogStream(clock=clock)
    stream.add(source)
    seen = b""
    for _ in range(8):
        append(source, b".")
        clock.now += PATIENCE / 4
        seen += poll(stream)
    assert len(seen) >= 4


def test_an_ended_log_is_read_to_its_end_and_forgotten(source: LogSource, clock: Clock) -> None:
    stream = LogStream(clock=clock)
    stream.add(source)
    append(source, b"one\nlast words")
    stream.end()
    append(source, b" from a grandchild that lingers\n")
    assert poll(stream) == b"one\nlast words"
    assert stream.done


def test_the_next_log_of_a_rank_ends_the_one_before(source: LogSource, tmp_path: Path, clock: Clock) -> None:
    later = LogSource(source.label, tmp_path / "generation-1.log")
    stream = LogStream(clock=clock)
    stream.add(source)
    append(source, b"one\nlast words")
    append(later, b"two\n")
    stream.add(later)
    stream.add(later)
    append(source, b" from a grandchild that lingers\n")
    assert [c.data for c in stream.poll()] == [b"one\n", b"last words", b"two\n"]
    assert poll(stream) == b""
    stream.end()
    assert poll(stream) == b""
    assert stream.done


def test_a_log_that_never_came_ends_too(source: LogSource) -> None:
    stream = LogStream()
    stream.add(source)
    stream.end()
    assert poll(stream) == b""
    assert stream.done


def test_a_long_line_is_handed_on_in_parts(source: LogSource, clock: Clock) -> None:
    stream = LogStream(clock=clock)
    stream.add(source)
    append(source, b"x" * LONGEST_LINE)
    assert poll(stream) == b"x" * LONGEST_LINE
    append(source, b"y\n")
    assert poll(stream) == b"y\n"


def test_one_flood_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    flood, quiet = LogSource("flood", tmp_path / "f"), LogSource("quiet", tmp_path / "q")
    append(flood, (b"x" * 99 + b"\n") * 100_000)
    append(quiet, b"hello\n")
    stream = LogStream()
    stream.add(flood)
    stream.add(quiet)
    chunks = list(stream.poll())
    assert [c.source for c in chunks] == [flood, quiet]
    assert max(len(c.data) for c in chunks) <= CHUNK + LONGEST_LINE


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6), waits=st.booleans())
def test_off_a_terminal_the_bytes_are_the_logs(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int], waits: bool
) -> None:
    source = LogSource("m/0", tmp_path_factory.mktemp("log") / "log")
    clock = Clock()
    stream = LogStream(clock=clock)
    stream.add(source)
    seen, at = b"", 0
    for cut in sorted(cuts):
        append(source, data[at:cut])
        at = max(at, cut)
        seen += poll(stream)
        clock.now += PATIENCE * waits
    append(source, data[at:])
    stream.end()
    seen += poll(stream)
    assert seen == data
    assert stream.done


@pytest.mark.parametrize(
    ("content", "last", "expected"),
    [
        (b"1\n2\n3\n", 2, b"2\n3\n"),
        (b"1\n2\n3", 2, b"2\n3"),
        (b"1\n2\n3\n", 3, b"1\n2\n3\n"),
        (b"1\n2\n3\n", 9, b"1\n2\n3\n"),
        (b"1\n2\n3\n", 0, b""),
        (b"\n\n\n", 2, b"\n\n"),
        (b"no newline", 1, b"no newline"),
        (b"", 5, b""),
    ],
)
def test_the_last_lines_alone(source: LogSource, content: bytes, last: int, expected: bytes) -> None:
    append(source, content)
    assert all_of(source, last=last) == expected


def test_the_last_lines_of_a_log_longer_than_one_read(source: LogSource) -> None:
    rows = [b"%d " % n + b"x" * 90 + b"\n" for n in range(20_000)]
    append(source, b"".join(rows))
    assert all_of(source, last=7000) == b"".join(rows[-7000:])
    assert 2 * CHUNK < 7000 * 95


def test_last_counts_for_logs_that_are_there_already(source: LogSource, tmp_path: Path) -> None:
    later = LogSource("mesh/1@local", tmp_path / "later")
    append(source, b"1\n2\n")
    stream = LogStream()
    stream.add(source, last=1)
    stream.add(later, last=1)
    append(later, b"1\n2\n")
    assert [(c.source, c.data) for c in stream.poll()] == [(source, b"2\n"), (later, b"1\n2\n")]


def test_logs_of_an_ended_run_are_read_one_after_the_other(tmp_path: Path) -> None:
    sources = [LogSource(f"m/{n}", tmp_path / str(n)) for n in range(3)]
    for n, source in enumerate(sources):
        append(source, b"%d\n" % n * CHUNK)
    order = [c.source.label for c in read_all(sources)]
    assert order == sorted(order)
    assert all_of(*sources) == b"".join(b"%d\n" % n * CHUNK for n in range(3))


def test_an_emptied_log_is_read_anew(source: LogSource) -> None:
    append(source, b"before\n")
    stream = LogStream()
    stream.add(source)
    poll(stream)
    os.truncate(source.path, 0)
    poll(stream)
    append(source, b"after\n")
    assert poll(stream) == b"after\n"


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert all_of(LogSource("m/0", tmp_path / "fifo")) == b""


ROWS = b"".join(b"%06d " % n + b"x" * 92 + b"\n" for n in range(30_000))  # 100 bytes each, 3 MB


def test_a_dropped_beginning_is_marked_once(source: LogSource) -> None:
    append(source, ROWS)
    dropped = punch(source, 1_000_000)
    marker, text = all_of(source).split(b"\n", 1)
    assert marker == b"[forgectl: %.0f MB dropped here, log_limit reached or disk full]" % (dropped / 1e6)
    assert text == ROWS[dropped:]


def test_what_is_dropped_before_a_slow_reader_came_to_it_is_marked(source: LogSource) -> None:
    append(source, ROWS)
    stream = LogStream()
    stream.add(source)
    seen = poll(stream)
    dropped = punch(source, 1_000_000)
    stream.end()
    while not stream.done:
        seen += poll(stream)
    before, marker, after = seen.partition(b"[forgectl: 2 MB dropped here, log_limit reached or disk full]\n")
    assert marker
    assert before.endswith(b"\n")  # a line cut by the drop ends before the marker
    assert ROWS.startswith(before[:-1])
    assert after == ROWS[dropped:]
    assert b"\0" not in seen


def test_a_log_dropped_to_its_end_goes_on(source: LogSource) -> None:
    append(source, b"x" * 8192)
    stream = LogStream()
    stream.add(source)
    punch(source, 1)
    assert poll(stream) == b"[forgectl: 8 KB dropped here, log_limit reached or disk full]\n"
    append(source, b"next\n")
    assert poll(stream) == b"next\n"


def test_the_last_lines_after_a_drop(source: LogSource) -> None:
    append(source, ROWS)
    dropped = punch(source, 1_000_000)
    assert all_of(source, last=3) == ROWS[-300:]
    assert all_of(source, last=20_000) == all_of(source)
    assert dropped > 0


def test_zeros_that_a_rank_wrote_are_its_own(source: LogSource) -> None:
    data = b"\0" * 5000 + b"a\0b\n"
    append(source, data)
    assert all_of(source) == data


def lines_on_a_terminal(stream: LogStream) -> list[bytes]:
    return [chunk.data for chunk in stream.poll()]


def test_on_a_terminal_a_progress_bar_shows_its_state_now_and_then(source: LogSource, clock: Clock) -> None:
    stream = LogStream(terminal=True, clock=clock)
    stream.add(source)
    seen = []
    for percent in range(100):
        append(source, b"\r%d%% |###" % percent)
        clock.now += 0.1
        seen += lines_on_a_terminal(stream)
    assert 1 <= len(seen) <= 1 + 10 / PROGRESS_EVERY
    assert all(data.startswith(b"\r") and data.endswith(b"% |###") for data in seen)
    append(source, b"\r100% |###\nnext\n")
    (end,) = lines_on_a_terminal(stream)
    assert end.endswith(b"\r100% |###\nnext\n")


def test_on_a_terminal_a_bar_that_stands_still_is_not_repeated(source: LogSource, clock: Clock) -> None:
    stream = LogStream(terminal=True, clock=clock)
    stream.add(source)
    append(source, b"\r10%")
    seen = []
    for _ in range(100):
        clock.now += 1
        seen += lines_on_a_terminal(stream)
    assert seen == [b"\r10%"]


@pytest.mark.parametrize("states", [b"10%\r20%\r", b"\r10%\r20%", b"10%\r20%\r    \r"])
def test_on_a_terminal_only_the_last_state_is_kept(source: LogSource, clock: Clock, states: bytes) -> None:
    stream = LogStream(terminal=True, clock=clock)
    stream.add(source)
    append(source, states)
    assert lines_on_a_terminal(stream) == []
    clock.now += PATIENCE
    (data,) = lines_on_a_terminal(stream)
    assert b"20%" in data
    assert b"10%" not in data
