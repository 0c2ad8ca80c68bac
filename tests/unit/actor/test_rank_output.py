"""Where a script shows what its ranks print: whatever its stderr is, and whether anybody reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.actor.driver import rank_output
from forgectl.actor.driver.rank_output import RankOutput
from forgectl.model.status import MeshStatus, RankStatus


def mesh(log: Path, *, state: str = "ready") -> MeshStatus:
    """A mesh whose only rank writes to a log."""
    rank = RankStatus(0, 0, "local", 1, "running", None, None, (), None, None, str(log))
    lost = MeshStatus.lost("m", "")
    return dataclasses.replace(lost, state=state, ranks=(rank,))  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"one\n\x1b[31mtwo\x1b]0;title\x07\n")
    return path


@contextlib.contextmanager
def stderr_is(stream: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield


def show(log: Path) -> None:
    output = RankOutput()
    output.take(mesh(log))
    output.take(mesh(log))  # every report has all logs
    output.end()
    output.join()


def test_a_stream_that_is_no_file_gets_text(log: Path) -> None:
    with stderr_is(shown := io.StringIO()):
        show(log)
        assert shown.getvalue() == "m/0 │ one\nm/0 │ \x1b[31mtwo\x1b]0;title\x07\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_notebook_shows_colours_and_nothing_that_acts(
    log: Path, monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    monkeypatch.setattr(rank_output, "in_notebook", lambda: True)
    monkeypatch.setenv("NO_COLOR", no_color)
    with stderr_is(shown := io.StringIO()):
        show(log)
        text = shown.getvalue()
    assert text.endswith("m/0 │ two\n" if no_color else "\x1b[36mm/0 │ \x1b[0m\x1b[31mtwo\x1b[0m\n")


def test_without_stderr_nothing_is_shown_and_nothing_fails(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        with stderr_is(stream):
            show(log)
    assert not failed


def test_the_end_does_not_wait_for_a_reader_that_takes_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_output, "STALL_SECONDS", 0.05)
    log.write_bytes(b"x" * 79 + b"\n" * 10_000 + b"y" * 800_000 + b"\n")
    ours, theirs = os.pipe()
    with open(theirs, "w") as stream, stderr_is(stream):
        show(log)  # far more than fits the pipe
        taken = b""
        while not taken.endswith(b"y\n"):  # nothing was dropped: a reader that comes late gets all
            taken += os.read(ours, 1 << 20)
    os.close(ours)
    assert taken.count(b"m/0") >= 10_001
