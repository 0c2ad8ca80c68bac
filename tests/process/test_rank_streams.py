"""What a rank prints: live, and never its death when the disk is full. Real processes, a real full disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "programs" / "print_to_log.py"
MARKER = re.compile(rb"\n\[forgectl: (\d+) bytes lost, disk full\]\n")


class Rank:
    """The program, and its answers."""

    def __init__(self, log: Path, env: dict[str, str]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
            text=True,
            encoding="utf-8",
        )

    def tell(self, command: str) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.process.communicate()[1]
        return json.loads(answer)

    def end(self) -> int:
        _, errors = self.process.communicate()
        assert errors == ""
        return self.process.returncode


Start = Callable[..., Rank]


@pytest.fixture
def start() -> Iterator[Start]:
    ranks: list[Rank] = []

    def run(log: Path, **env: str) -> Rank:
        ranks.append(Rank(log, env))
        return ranks[-1]

    yield run
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
        rank.process.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {result.stderr.strip()}")
    (disk / "ballast").write_bytes(b"x" * 300_000)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_lines_are_in_the_log_as_soon_as_they_are_printed(start: Start, tmp_path: Path) -> None:
    rank = start(tmp_path / "log")
    rank.tell("out 1 hello")
    assert rank.log.read_bytes() == b"hello\n"
    rank.tell("part load")
    rank.tell("err 1 oops")
    rank.tell("raw ff00")
    assert rank.log.read_bytes() == b"hello\nloadoops\n\xff\0"
    assert rank.end() == 0


def test_the_streams_look_like_cpythons_own(start: Start, tmp_path: Path) -> None:
    out, err = start(tmp_path / "log", LANG="C.UTF-8").tell("show")
    common = {
        "isatty": False,
        "mode": "w",
        "encoding": "utf-8",
        "line_buffering": True,
        "writable": True,
        "readable": False,
        "same": True,
    }
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.stdout.errors, sys.stderr.errors)"],
        env={"LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert out == {**common, "fileno": 1, "name": "<stdout>", "errors": shown[0]}
    assert err == {**common, "fileno": 2, "name": "<stderr>", "errors": shown[1]}


def test_output_is_utf_8_whatever_the_locale(start: Start, tmp_path: Path) -> None:
    """In this locale, and told not to mend it, CPython's own streams would be ASCII."""
    rank = start(tmp_path / "log", LC_ALL="POSIX", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    rank.tell("out 1 \u00e4\u2713")
    rank.tell("err 1 \u2713")
    assert rank.log.read_text("utf-8") == "\u00e4\u2713\n\u2713\n"


def test_pythonioencoding_is_heard(start: Start, tmp_path: Path) -> None:
    out, _ = start(tmp_path / "log", PYTHONIOENCODING="latin-1:replace").tell("show")
    assert (out["encoding"], out["errors"]) == ("iso8859-1", "replace")


def test_a_full_disk_costs_lines_that_are_counted_but_not_the_rank(small_disk: Path, start: Start) -> None:
    rank = start(small_disk / "log")
    rank.tell("out 20000 " + "x" * 99)  # twice what fits
    rank.tell("err 10 " + "y" * 99)
    rank.tell("out 10 z")
    full = rank.log.read_bytes()
    assert MARKER.search(full) is None
    (small_disk / "ballast").unlink()
    rank.tell("out 1 goes on")
    rank.tell("err 1 errors too")
    assert rank.end() == 0
    data = rank.log.read_bytes()
    assert data.startswith(full)
    assert MARKER.sub(b"", data[len(full) :]) == b"goes on\nerrors too\n"
    lost = sum(int(count) for count in MARKER.findall(data))
    assert lost == 20000 * 100 + 10 * 100 + 10 * 2 - len(full)


def test_a_loss_that_no_line_followed_is_told_at_the_end(small_disk: Path, start: Start) -> None:
    rank = start(small_disk / "log")
    rank.tell("out 20000 " + "x" * 99)
    full = len(rank.log.read_bytes())
    (small_disk / "ballast").unlink()
    assert rank.end() == 0
    assert MARKER.findall(rank.log.read_bytes()) == [b"%d" % (20000 * 100 - full)]


def test_a_disk_that_stays_full_is_no_failure(small_disk: Path, start: Start) -> None:
    rank = start(small_disk / "log")
    rank.tell("out 20000 " + "x" * 99)
    rank.tell("part unfinished")
    assert rank.end() == 0


def test_what_a_parent_lost_its_child_does_not_tell(small_disk: Path, start: Start) -> None:
    rank = start(small_disk / "log")
    rank.tell("out 20000 " + "x" * 99)
    full = rank.log.read_bytes()
    (small_disk / "ballast").unlink()
    rank.tell("fork from the child")
    assert rank.log.read_bytes() == full + b"from the child\n"
    rank.tell("out 1 from the parent")
    assert rank.log.read_bytes().endswith(b"bytes lost, disk full]\nfrom the parent\n")
    assert rank.end() == 0


def test_other_errors_are_the_ranks_own(tmp_path: Path) -> None:
    """A closed pipe raises, as it does under plain Python."""
    code = "from forgectl.rank import stdio; stdio.install(); import sys; sys.stdin.read(1)\nwhile True: print('x')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(b"x")
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() not in (0, -signal.SIGPIPE)
    assert b"BrokenPipeError" in errors
