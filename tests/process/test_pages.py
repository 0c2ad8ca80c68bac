"""The commands that README and docs show print what the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Forge
from tests.pages import PAGES, Block, blocks_of

RUN = [page for page in PAGES if any(block.mark.startswith("run") for block in blocks_of(page))]
MARK = "== command =="

pytestmark = pytest.mark.timeout(300)  # a page has up to ten launches


def plain(text: str) -> str:
    """Without what differs from run to run: ids, numbers, the width of columns."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)*", "N", re.sub(r"-[0-9a-f]{4}\b", "-ID", text))).strip()


def fits(expected: list[str], found: list[str]) -> bool:
    """Whether the lines are those of a page, in which `…` is anything, and a line of it alone is any lines."""
    pattern = ""
    for line in expected:
        if line.strip() == "…":
            pattern += "(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(plain(part)) for part in line.split("…")) + "\n"
    return re.fullmatch(pattern, "".join(f"{plain(line)}\n" for line in found)) is not None


class Shell:
    """Runs the blocks of a page one after the other, in one folder that they may leave."""

    def __init__(self, forge: Forge) -> None:
        self._folder = forge.folder
        self._env = forge.env | {"PATH": f"{Path(sys.executable).parent}:{forge.env['PATH']}"}

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def run(self, block: Block) -> list[list[str]]:
        """The lines that each command printed; the page says whether the last one fails."""
        commands = [command for command, _ in block.steps]
        script = "".join(f"echo; echo '{MARK}'\n{command}\ncode=$?\n" for command in commands)
        script += f"echo; echo '{MARK}'; pwd\nexit $code"
        options = [] if block.mark == "run: fails" else ["-e"]
        done = subprocess.run(
            ["bash", *options, "-c", script],
            cwd=self._folder, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=280,
        )  # fmt: skip
        assert (done.returncode != 0) == (block.mark == "run: fails"), f"{block}: {done.returncode}\n{done.stdout}"
        *printed, folder = done.stdout.split(f"\n{MARK}\n")[1:]
        self._folder = Path(folder.strip())
        return [text.splitlines() for text in printed]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_print_what_it_says(forge: Forge, page: Path) -> None:
    shell = Shell(forge)
    for block in blocks_of(page):
        if block.file:
            shell.write(block.file, block.text)
        elif block.mark.startswith("run"):
            for (command, expected), found in zip(block.steps, shell.run(block), strict=True):
                printed, shown = (list(filter(None, lines)) for lines in (expected, found))
                assert not printed or fits(printed, shown), f"{block}: $ {command}\n" + "\n".join(found)


def test_lines_fit() -> None:
    assert fits(["run a-12ab took 1.5 s", "…", "the end"], ["run a-00ff  took 22.75 s", "one", "two", "the end"])
    assert fits(["a … b"], ["a cde b"])
    assert not fits(["one", "two"], ["one"])
    assert not fits(["one"], ["one", "two"])
    assert not fits(["one … three"], ["one two"])
