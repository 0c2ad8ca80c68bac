"""What of a rank's output reaches a terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forgectl.log_output.terminal_text import RESET, harmless

SGR = re.compile(r"\x1b\[[0-9;:]*m")

pieces = st.one_of(
    st.text(max_size=8),
    st.characters(max_codepoint=0x9F),
    st.sampled_from(["\x1b", "\x1b[", "\x1b]52;c;", "\x07", "\x1b\\", "\x9c", "\x9b", "\x1bP", "\x1b_", "31m"]),
    st.sampled_from(["\x1b[31m", RESET, "\x1b[m", "\x1b[2J", "\x1b(B", "\x1bc", "\u202e", "\ud83d", "\t", "\r"]),
)
lines = st.lists(pieces, max_size=12).map("".join)


@pytest.mark.thorough
@given(lines, st.booleans())
@example("\x1b\x07[31m", True)
@example("\x1b\x1b[0m[2J", True)
@example("\x1b[31m\x1b[", True)
def test_nothing_that_acts_survives_but_colors_and_tabs(line: str, color: bool) -> None:
    shown = harmless(line, color=color)
    plain = SGR.sub("", shown) if color else shown
    assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", plain)
    shown.encode()


@given(lines, st.booleans())
def test_twice_is_once(line: str, color: bool) -> None:
    once = harmless(line, color=color)
    assert harmless(once, color=color) == once


@given(lines)
def test_no_color_leaks_out_of_the_line(line: str) -> None:
    styles = SGR.findall(harmless(line))
    assert not styles or styles[-1] in (RESET, "\x1b[m")


@given(st.text().filter(lambda text: all(c.isprintable() or c == "\t" for c in text)))
def test_printable_text_and_tabs_stay(text: str) -> None:
    assert harmless(text) == text
    assert harmless(text.encode()) == text


@given(st.binary())
def test_any_bytes_can_be_shown(data: bytes) -> None:
    assert not set(SGR.sub("", harmless(data))) & {"\x1b", "\x07", "\x08", "\x9b", "\n", "\r"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m plain", "\x1b[1;31mred\x1b[0m plain"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("\x1b[38;2;1;2;3mrgb\x1b[m", "\x1b[38;2;1;2;3mrgb\x1b[m"),
        ("\x1b[>4;1mkeys", "keys"),
        ("\x1b[?1049halternate screen", "alternate screen"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("a\x1b]52;c;cm0gLXJm\x07b", "ab"),
        ("a\x1b]0;title\x1b\\b", "ab"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1bPq#0\x1b\\b\x1b_apc\x1b\\c\x1b^pm\x1b\\d\x1bXsos\x1b\\e", "abcde"),
        ("\x1b]0;never closed", "\\x1b]0;never closed"),
        ("\x1bPnever closed \x1b[31mred", "\\x1bPnever closed \x1b[31mred\x1b[0m"),
        ("half\x1b[31", "half\\x1b[31"),
        ("end\x1b", "end\\x1b"),
        ("\x1b(B\x1b[msgr0", "\x1b[msgr0"),
        ("\x1bcreset", "reset"),
        ("\x9b31mc1", "\\x9b31mc1"),
        (b"\xc2\x9b31mc1 in UTF-8", "\\x9b31mc1 in UTF-8"),
        (b"\x9b31mraw c1", "\ufffd31mraw c1"),
        ("ding\x07 \x08\x08\x00", "ding "),
        ("\x0e shift", "\\x0e shift"),
        ("user\u202eexe.txt", "user<U+202E>exe.txt"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("half \ud83d", "half \ufffd"),
        ("windows\r", "windows"),
        ("10%\r20%\r30%", "30%"),
        ("\r100%|####|\r   \r", "100%|####|"),
        ("\x1b[31mold\rnew", "new"),
        ("two\nlines", "two\\x0alines"),
    ],
)
def test_what_is_shown(line: str | bytes, shown: str) -> None:
    assert harmless(line) == shown


def test_without_color_styles_go_too() -> None:
    assert harmless("\x1b[31mred\x1b[0m", color=False) == "red"


@pytest.mark.thorough
@pytest.mark.parametrize("hostile", ["\x1b]", "\x1bP0", "\x1b[", "\x1b[1;", "\x1b(", "\x1b[0 ", "\r", "\x1b[31m"])
def test_the_work_grows_with_the_line_and_no_faster(hostile: str) -> None:
    """A pattern that backtracks would not end here before the timeout: this is 2 MB of it."""
    line = hostile * (2_000_000 // len(hostile))
    assert "\x1b" not in harmless(line, color=False)
    assert "\x1b" not in harmless(hostile + "1" * 2_000_000, color=False)
