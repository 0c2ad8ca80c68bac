"""The blocks of code of README and docs: what they are, and how they are marked.

`<!-- run -->` above a console block: it is run, and prints what the page says, where `…` stands for anything. With
`<!-- run: fails -->` its last command fails. `<!-- wrong -->`: a spec that is refused. A block that begins with
`# NAME.py` or `# NAME.yaml` is a file that later commands of the page may use.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]
PAGES = [TOP / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((TOP / "docs").glob("*.md"))
LANGUAGES = ("console", "python", "yaml", "text")
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>run|run: fails|wrong) -->\n)?^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)^```$", re.MULTILINE
)
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(TOP)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it is one."""
        match = FILE.match(self.text) if self.language in ("python", "yaml") else None
        return match[1] if match else None

    @property
    def steps(self) -> list[tuple[str, list[str]]]:
        """(Command, lines that it prints) of a console block."""
        steps: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                assert steps, f"{self}: a console block begins with `$ `"
                steps[-1][1].append(line)
        return steps


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, m.start("text")), m["language"], m["text"], m["mark"] or "")
        for m in FENCE.finditer(text)
    ]


def commands_in(line: str) -> Iterator[list[str]]:
    """The words of each simple command of a line of shell, without assignments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in lexer:
        if set(word) <= set("|&;"):
            yield words
            words = []
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        elif words or not re.match(r"\w+=", word):
            words.append(word)
    if words:
        yield words
