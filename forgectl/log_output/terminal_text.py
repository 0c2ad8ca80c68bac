"""Makes a line of a rank's output safe to show on a terminal: colors stay, all other control sequences go."""

from __future__ import annotations

import os
import re
from typing import Any

RESET = "\x1b[0m"

_SUSPECT = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_PATTERN = re.compile(
    r"""
      (?P<sgr>     \x1b\[[0-9;:]{0,64}m )                        # colors and styles
    | (?P<dropped> \x1b\[[0-?]*[ -/]*[@-~]                       # other CSI: cursor, erase, modes
                 | \x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)  # OSC DCS SOS PM APC, up to BEL or ST
                 | \x1b[ -/]+[0-~]                               # character sets
                 | \x1b[0-OQ-WYZ\\`-~]                           # two characters that open none of the above
                 | [\x00\x07\x08] )                              # NUL BEL BS
    | (?P<control> [\x01-\x06\x0a-\x1f\x7f-\x9f] )               # whatever is left of C0 and C1
    | (?P<hidden>  [\u2028-\u202e\u2066-\u2069] )                # line separators, direction overrides
    | (?P<broken>  [\ud800-\udfff] )                             # half a character
    """,
    re.VERBOSE,
)


def wants_color(stream: Any) -> bool:
    """Whether to use colours on a stream."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def harmless(line: str | bytes, *, color: bool = True) -> str:
    r"""One line, given without its newline, in a form that is safe to write to a terminal.

    Printable text and tabs stay as they are. Colors (SGR) stay unless `color` is false, and a line that sets any ends
    with a reset. Other escape sequences, NUL, BEL and backspace are dropped. Other characters that act on a terminal,
    also in an unfinished sequence, are written as `\x1b` or `<U+202E>`. Bytes that are not UTF-8 become U+FFFD. If
    carriage returns rewrote the line, only its last state stays. Idempotent.
    """
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    if _SUSPECT.search(text) is None:
        return text
    if "\r" in text:
        text = next((state for state in reversed(text.split("\r")) if state.strip()), "")
    last_style = ""

    def replace(match: re.Match[str]) -> str:
        nonlocal last_style
        kind, found = match.lastgroup, match.group()
        if kind == "sgr" and color:
            last_style = found
            return found
        if kind == "control":
            return f"\\x{ord(found):02x}"
        if kind == "hidden":
            return f"<U+{ord(found):04X}>"
        return "\ufffd" if kind == "broken" else ""

    text = _PATTERN.sub(replace, text)
    return text + RESET if last_style not in ("", RESET, "\x1b[m") else text
