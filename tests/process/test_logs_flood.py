"""A rank that floods its log while it is capped and followed: time and again the same memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from forgectl.log_output.log_stream import Chunk, LogSource, LogStream
from forgectl.log_output.log_writer import LogWriter
from forgectl.system.log_cap import LogCap, Trimmed, Uncapped

PROGRAM = Path(__file__).parents[1] / "programs" / "write_log.py"
COUNT, WIDTH = 2_000_000, 100  # 200 MB
LIMIT = 20_000_000


def writer_of(source: LogSource) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, PROGRAM, source.path, str(COUNT), str(WIDTH)])


class Counted:
    """A stream that nobody keeps."""

    def __init__(self) -> None:
        self.size = 0
        self.last = b""

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self.last = data

    def flush(self) -> None:
        pass


def test_a_flood_is_followed_in_bounded_memory(tmp_path: Path) -> None:
    source = LogSource("flood/0@local", tmp_path / "log")
    out = Counted()
    writer, stream = LogWriter(out, prefix=False), LogStream()
    stream.add(source)
    process = writer_of(source)
    tracemalloc.start()
    try:
        while not stream.done:
            if process.poll() is not None:
                stream.end()
            for chunk in stream.poll():
                writer.write(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        process.wait()
    assert process.returncode == 0
    assert out.size == COUNT * WIDTH
    assert out.last.endswith(f"{COUNT - 1} ".ljust(WIDTH - 1, "x").encode() + b"\n")
    assert peak < 8 << 20


def test_a_flood_is_capped_while_it_is_followed_and_every_line_is_whole_or_marked(tmp_path: Path) -> None:
    source = LogSource("flood/0@local", tmp_path / "log")
    cap, stream = LogCap(LIMIT), LogStream()
    stream.add(source)
    process = writer_of(source)
    last, markers, torn, smallest = -1, 0, 0, LIMIT
    while not stream.done:
        ended = process.poll() is not None
        for result in cap.check([source.path]):
            if isinstance(result, Uncapped):
                process.kill()
                process.wait()
                pytest.skip(f"no holes on this file system: {result.reason}")
            assert isinstance(result, Trimmed)
            smallest = min(smallest, result.kept)
        if ended:
            stream.end()
        for chunk in stream.poll():
            markers += chunk.data.count(b"[forgectl: ")
            last, not_whole = _read_rows(chunk, last)
            torn += not_whole
    assert process.wait() == 0
    assert smallest <= LIMIT // 2 + (2 << 20)  # what is written while it is trimmed comes on top
    assert last == COUNT - 1
    assert markers > 0
    assert torn <= 2 * markers  # the line before a drop and the line after it
    assert source.path.stat().st_blocks * 512 <= LIMIT + (4 << 20)


def _read_rows(chunk: Chunk, last: int) -> tuple[int, int]:
    """The number of the last whole row, and how many were not whole; numbers only ever rise."""
    assert b"\0" not in chunk.data
    torn = 0
    for row in chunk.data.splitlines():
        if len(row) == WIDTH - 1 and row.endswith(b"x") and row[:1].isdigit():
            number = int(row.split(b" ")[0])
            assert number > last
            last = number
        elif row and not row.startswith(b"[forgectl: "):
            torn += 1
    return last, torn


def test_idle_logs_are_neither_opened_nor_read(tmp_path: Path) -> None:
    stream = LogStream()
    for n in range(64):
        source = LogSource(f"m/{n}", tmp_path / str(n))
        source.path.write_bytes(b"line\n")
        stream.add(source)
    before = _reads(), len(os.listdir("/proc/self/fd"))
    assert len(list(stream.poll())) == 64
    assert _reads() >= before[0] + 64
    before = _reads(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        assert list(stream.poll()) == []
    assert _reads() < before[0] + 100  # a few are the test runner's
    assert len(os.listdir("/proc/self/fd")) == before[1]


def _reads() -> int:
    """Calls of read(2) and pread(2) that this process has made."""
    return int(Path("/proc/self/io").read_text().split("syscr: ")[1].split()[0])
