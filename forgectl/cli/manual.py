"""What helps are made of: exit codes, environment variables, and a page that fits its terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

CODES = {
    0: "Done.",
    1: "What was called raised an exception, or its actor died.",
    64: "Wrong usage, such as an unknown option.",
    65: "The spec has problems; each is printed with its line and column.",
    66: "No such file, run, mesh or rank.",
    69: "A host is unreachable, or lacks what is needed.",
    70: "A fault of forgectl itself.",
    75: "Try again later: GPUs or a name are taken, or a disk is full.",
    77: "ssh refused, or other users can change files that must be yours alone.",
    124: "Not done within its time limit.",
    130: "Ctrl-C.",
    141: "The reader of a pipe has gone.",
}
"""Exit code → when commands end with it."""
OF_PROGRAM = "That of the program that failed; 128 + signal if a signal ended it."

VARIABLES = {
    "FORGECTL_HOME": "Folder of runs and sockets, an absolute path. Default: `$XDG_STATE_HOME/forgectl` "
    "(`~/.local/state/forgectl`) for runs, `$XDG_RUNTIME_DIR/forgectl` (else `/tmp/forgectl-UID`) for sockets.",
    "FORGECTL_SSH": "Program in place of `ssh`, with its options, such as `ssh -F other`.",
    "FORGECTL_KEEP": "Which ended runs stay, as `forgectl prune --keep` has it; `everything`: all. Default: "
    "`30d, 100 runs, 10 GiB`.",
    "FORGECTL_GPU_LOCK_DIR": "Folder of the GPU locks, the same for all users of a machine.",
    "FORGECTL_LOGS": "`off`: a script with actors does not show what their ranks print.",
    "NO_COLOR": "No colours.",
}
"""Environment variable → what it means."""


def shown_variables(names: Iterable[str], *, whole: bool) -> list[tuple[str, str]]:
    """The variables as rows of a page; unless `whole` without their defaults."""
    about = {name: VARIABLES[name].replace("`", "") for name in names}
    return [(name, text if whole else text.partition(" Default:")[0]) for name, text in about.items()]


WIDEST = 100
"""Columns of the widest page: longer lines are hard to read."""
_LEAST = 28  # columns of the right one of two


class Page(click.HelpFormatter):
    """A page of help as wide as its terminal. Where two columns do not fit, each text stands below its term."""

    def __init__(self, **_: Any) -> None:
        import shutil  # slow, and only helps need it

        super().__init__(width=max(20, min(shutil.get_terminal_size().columns, WIDEST) - 2))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write terms, and the text of each."""
        rows = list(rows)
        longest = min(col_max, max((len(term) for term, _ in rows), default=0))
        if self.width - self.current_indent - longest - col_spacing >= _LEAST:
            super().write_dl(rows, col_max, col_spacing)
            return
        self._write_below(rows)

    def write_examples(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write command lines, and what each does, side by side if no line must be broken for that."""
        longest = max(len(line) for line, _ in rows)
        if self.current_indent + longest + 2 + max(len(text) for _, text in rows) <= self.width:
            super().write_dl(rows, col_max=longest)
        else:
            self._write_below(rows)

    def _write_below(self, rows: Iterable[tuple[str, str]]) -> None:
        for term, text in rows:
            self.write_text(term)
            with self.indentation(), self.indentation():
                self.write_text(text)
