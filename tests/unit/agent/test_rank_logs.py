"""Rank logs on the host that writes them: opening, the last lines, and the cap; on real files and file systems."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgectl.agent.rank_logs import open_log, tail
from forgectl.system.log_cap import LogCap, Trimmed, Uncapped, leading_hole

MB = 1_000_000

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a fresh file system of a kind; root alone may, so this skips for others."""
    mounted: list[Path] = []

    def make(kind: str, *options: str) -> Path:
        folder = tmp_path / f"{kind}{len(mounted)}"
        folder.mkdir()
        argv = ["mount", "-t", kind, *options, kind, str(folder)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"cannot mount {kind} here: {result.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def with_holes(tmp_path: Path) -> Path:
    """A folder where files can have holes; skips where the file system of temporary files cannot."""
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * 16384)
    for result in LogCap(8192).check([probe]):
        if isinstance(result, Uncapped):
            pytest.skip(f"no holes here: {result.reason}")
    return tmp_path


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def dropped_of(path: Path) -> int:
    with path.open("rb") as file:
        return leading_hole(file.fileno())


def test_a_log_and_its_folders_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = tmp_path / "logs" / "mesh" / "0" / "rank-0.log"
        fd = open_log(path)
    finally:
        os.umask(old)
    os.write(fd, b"a")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"b")
    os.close(fd)
    assert path.read_bytes() == b"ab"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.parents if tmp_path in p.parents} == {0o700}


def test_a_log_is_never_shared_nor_inherited(tmp_path: Path) -> None:
    fd = open_log(tmp_path / "log")
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(FileExistsError):
        open_log(tmp_path / "log")


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        open_log(tmp_path / "log")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"one\ntwo\nthree\n", 2, ["two", "three"]),
        (b"one\ntwo", 5, ["one", "two"]),
        (b"one\n\ntwo\n\n\n", 3, ["one", "", "two"]),
        (b"0%\r50%\r100%\ndone\n", 5, ["100%", "done"]),
        (b"windows\r\n", 5, ["windows"]),
        (b"100%\r    \r\n", 5, ["100%"]),
        (b"bad \xff utf-8\n", 5, ["bad \ufffd utf-8"]),
        (b"a\0\0b\n", 5, ["ab"]),
        (b"", 5, []),
        (b"\n\n", 5, []),
        (b"\0" * 100, 5, []),
        (b"one\n", 0, []),
    ],
)
def test_the_last_lines(tmp_path: Path, content: bytes, lines: int, expected: list[str]) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log", lines) == expected


def test_the_last_lines_read_no_more_than_they_may(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %03d\n" % n for n in range(500)))
    assert tail(path, 100, limit_bytes=25) == ["line 498", "line 499"]
    path.write_bytes(b"x" * 100_000)
    assert tail(path, 100, limit_bytes=10) == [], "it may be half a secret, which nobody would recognise"
    path.write_bytes(b"x" * 90 + b" 10%\r 20%\r\n")
    assert tail(path, 100, limit_bytes=20) == [" 20%"]
    with path.open("wb") as file:
        file.truncate(1 << 42)  # 4 TiB, all of it a hole: reading it would not end
    assert tail(path) == []


def test_the_last_lines_of_what_is_no_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert [tail(tmp_path / name) for name in ("gone", "fifo", "link", ".")] == [[], [], [], []]


def test_a_log_over_the_limit_loses_its_oldest_part(with_holes: Path) -> None:
    path = with_holes / "log"
    rows = [b"%07d\n" % n for n in range(500_000)]
    path.write_bytes(b"".join(rows))
    cap = LogCap(MB)
    (trimmed,) = cap.check([path])
    assert isinstance(trimmed, Trimmed)
    assert trimmed.why == "limit"
    assert "MB of" in trimmed.describe()
    assert path.stat().st_size == 4 * MB
    assert MB // 2 <= on_disk(path) <= MB // 2 + 65536
    assert trimmed.kept == on_disk(path)
    assert trimmed.dropped == trimmed.total == dropped_of(path)
    data = path.read_bytes()
    assert data[trimmed.dropped :] == b"".join(rows)[trimmed.dropped :]
    assert not any(data[: trimmed.dropped])
    assert tail(path, 2) == ["0499998", "0499999"]
    assert cap.check([path]) == []


def test_a_log_that_goes_on_is_kept_in_bounds(with_holes: Path) -> None:
    path = with_holes / "log"
    cap = LogCap(MB)
    fd = open_log(path)
    dropped = 0
    for n in range(100):
        os.write(fd, b"%02d" % n * 50_000)
        for trimmed in cap.check([path]):
            assert isinstance(trimmed, Trimmed)
            dropped += trimmed.dropped
            assert trimmed.total == dropped
        assert on_disk(path) <= MB + 65536
    os.close(fd)
    assert path.stat().st_size == 100 * 100_000
    assert dropped == dropped_of(path)
    assert path.read_bytes().endswith(b"99" * 50_000)


@pytest.mark.parametrize("each", [1, 4096, 3 * MB, 1 << 30])
def test_of_a_steady_flood_the_first_loss_is_told_then_each_doubling(each: int) -> None:
    trimmings = [Trimmed(Path("rank-0.log"), each, n * each, MB, "limit") for n in range(1, 1001)]
    told = [t.total // each for t in trimmings if t.worth_reporting]
    assert told[0] == 1
    assert 9 <= len(told) <= 11
    assert all(later >= 2 * first for first, later in zip(told, told[2:], strict=False))


def test_a_log_within_the_limit_or_gone_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10_000)
    assert LogCap(MB).check([path, tmp_path / "gone"]) == []
    assert path.read_bytes() == b"x" * 10_000


def test_a_file_that_a_log_was_replaced_by_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x" * 100_000)
    (tmp_path / "log").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    assert LogCap(1).check([tmp_path / "log", tmp_path / "fifo", tmp_path]) == []
    assert target.read_bytes() == b"x" * 100_000


def test_a_file_system_without_holes_is_told_of_once(mount: Mount) -> None:
    path = mount("ramfs") / "log"
    path.write_bytes(b"x" * 100_000)
    cap = LogCap(10_000)
    results = cap.check([path])
    assert [type(r) for r in results] == [Uncapped]
    assert "log_limit" in results[0].describe()
    assert results[0].worth_reporting
    assert cap.check([path]) == []
    assert path.read_bytes() == b"x" * 100_000


def write_for_ever(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"b" * 4096)


def test_on_a_full_disk_the_biggest_logs_make_room(mount: Mount) -> None:
    disk = mount("tmpfs", "-o", "size=4m")
    big, small, tiny = disk / "big", disk / "small", disk / "tiny"
    tiny.write_bytes(b"t" * 100_000)
    small.write_bytes(b"s" * 800_000)
    cap = LogCap(100 * MB)
    assert cap.check([tiny, small]) == []
    with pytest.raises(OSError, match="No space"):
        write_for_ever(big)
    results = cap.check([tiny, small, big])
    assert [(r.path, r.why) for r in results if isinstance(r, Trimmed)] == [(big, "disk full")]
    assert "full" in results[0].describe()
    assert cap.check([tiny, small, big]) == []
    with big.open("ab", buffering=0) as file:
        assert file.write(b"\nagain\n") == 7
    assert tail(big) == ["again"]
    assert (small.read_bytes(), tiny.read_bytes()) == (b"s" * 800_000, b"t" * 100_000)


def test_on_a_disk_that_others_fill_logs_keep_their_ends(mount: Mount) -> None:
    disk = mount("tmpfs", "-o", "size=4m")
    log = disk / "log"
    log.write_bytes(b"x" * 2 * MB)
    cap = LogCap(100 * MB)
    trimmed = 0
    for n in range(10):
        with pytest.raises(OSError, match="No space"), (disk / f"checkpoint{n}").open("wb") as file:
            file.write(b"c" * 8 * MB)
        trimmed += len(cap.check([log]))
    assert 1 <= trimmed < 10
    assert 256 * 1024 <= on_disk(log) <= 257 * 1024 + 4096
