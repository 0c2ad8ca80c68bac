"""How chunks of logs come out on a terminal, and in a pipe."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from forgectl.log_output.log_stream import Chunk, LogSource
from forgectl.log_output.log_writer import PALETTE, WIDEST_LABEL, LogWriter

A = LogSource("trainer/0@local", Path("a"))
B = LogSource("trainer/10@local", Path("b"))
C = LogSource("driver/0@local", Path("c"))


def written(*chunks: tuple[LogSource, bytes], terminal: bool = False, color: bool = False, prefix: bool = True) -> str:
    out = io.BytesIO()
    writer = LogWriter(out, terminal=terminal, color=color, prefix=prefix)
    for source, data in chunks:
        writer.write(Chunk(source, data))
    writer.end()
    return out.getvalue().decode("utf-8", "surrogateescape")


def test_in_a_pipe_each_line_has_its_source_before_it() -> None:
    text = written((A, b"one\ntwo\n"), (C, b"\n"), (A, b"three\n"))
    assert text == ("trainer/0@local │ one\ntrainer/0@local │ two\ndriver/0@local │ \ntrainer/0@local │ three\n")


def test_in_a_pipe_bytes_stay_as_they_are() -> None:
    raw = b"\x1b]52;c;xx\x07 \xff\xfe \r10%\r20%\n\x1b[31mred\n no newline"
    assert written((A, raw), prefix=False).encode("utf-8", "surrogateescape") == raw


def test_in_a_pipe_the_last_line_ends_where_lines_have_a_source() -> None:
    assert written((A, b"one\nend")) == "trainer/0@local │ one\ntrainer/0@local │ end\n"
    assert written((A, b"one\nend"), prefix=False) == "one\nend"
    assert written((A, b"end"), (B, b"")) == "trainer/0@local │ end\n"


def test_in_a_pipe_a_line_goes_on_where_it_was_left() -> None:
    assert written((A, b"load"), (A, b"ing\n"), (A, b"done\n")) == (
        "trainer/0@local │ loading\ntrainer/0@local │ done\n"
    )


def test_in_a_pipe_another_source_starts_a_line_of_its_own() -> None:
    assert written((A, b"load"), (C, b"hello\n"), (A, b"ing\n"), prefix=False) == "load\nhello\ning\n"


def test_on_a_terminal_lines_are_harmless_and_always_end() -> None:
    text = written((A, b"a\x1b[2Jb\nload"), (A, b"ing\x1b[31m\n"), terminal=True)
    assert text == "trainer/0@local │ ab\ntrainer/0@local │ load\ntrainer/0@local │ ing\n"


def test_on_a_terminal_labels_are_padded_to_the_longest_so_far() -> None:
    long = LogSource("x" * 200, Path("x"))
    rows = written((C, b"a\n"), (B, b"b\n"), (C, b"c\n"), (long, b"d\n"), (C, b"e\n"), terminal=True).splitlines()
    assert rows == [
        "driver/0@local │ a",
        "trainer/10@local │ b",
        "driver/0@local   │ c",
        "x" * 200 + " │ d",
        "driver/0@local".ljust(WIDEST_LABEL) + " │ e",
    ]


def test_on_a_terminal_each_mesh_keeps_its_color_and_lines_theirs() -> None:
    rows = written((A, b"\x1b[31mred\n"), (C, b"c\n"), (B, b"b\n"), terminal=True, color=True).splitlines()
    trainer, driver = PALETTE[:2]
    assert rows == [
        f"\x1b[{trainer}mtrainer/0@local │ \x1b[0m\x1b[31mred\x1b[0m",
        f"\x1b[{driver}mdriver/0@local  │ \x1b[0mc",
        f"\x1b[{trainer}mtrainer/10@local │ \x1b[0mb",
    ]


def test_no_color_means_none_of_ours_nor_of_the_ranks() -> None:
    assert "\x1b" not in written((A, b"\x1b[31mred\n"), terminal=True, color=False)


def test_a_pipe_gets_no_color_of_ours() -> None:
    assert written((A, b"a\n"), color=True) == "trainer/0@local │ a\n"


def test_a_label_cannot_act_on_the_terminal() -> None:
    assert "\x1b" not in written((LogSource("m/0@\x1b]0;x\x07h", Path("x")), b"a\n"), terminal=True)


def test_a_closed_pipe_is_the_callers_to_know_of() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as out, pytest.raises(BrokenPipeError):
        LogWriter(out).write(Chunk(A, b"a\n"))
