"""What TAB completes: in real shells on a terminal, and what it costs those who are asked."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Forge, until
from tests.process.actor_scripts import bring
from tests.process.screen import Screen

SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile"],
        "source <(forgectl completion bash)",
        r"""bind -x '"\C-g": printf "<%s>\n" "$READLINE_LINE"'""",
    ),
    "zsh": (
        ["zsh", "-f"],
        "source <(forgectl completion zsh)",
        "show() { zle -I; print -r -- \"<$BUFFER>\" }; zle -N show; bindkey '^G' show",
    ),
    "fish": (
        ["fish", "--no-config"],
        "forgectl completion fish | source",
        r"""bind \cg 'printf "<%s>\n" (commandline)'""",
    ),
}
"""Shell → how it starts, what loads completion, and what has Ctrl-G print the line that is being typed."""
SPEC = """
actors: {counter: {class: 'players:Counter', procs: 2, preload: []}}
scripts: {stay: {run: PROGRAMS/stay.py, preload: []}, brief: {command: 'true'}}
services: {poll: {class: 'players:Counter', num_replicas: 2, preload: []}}
"""


class Lines:
    """A shell in which a user types."""

    def __init__(self, forge: Forge, shell: str) -> None:
        argv, load, show = SHELLS[shell]
        self.screen = Screen(forge, *argv)
        self.screen.type(f"{show}\n{load}\necho rea''dy\n")
        self.screen.until("ready")

    def after_tab(self, typed: str) -> str:
        """The line after a TAB, which must not print anything else into it."""
        self.screen.type(f"{typed}\t\x07")
        self.screen.until("<")
        line = self.screen.read_until(">\r\n")
        self.screen.type("\x15")
        return line


@contextlib.contextmanager
def shell_lines(forge: Forge, shell: str) -> Iterator[Lines]:
    lines = Lines(forge, shell)
    try:
        yield lines
        lines.screen.type("exit\n")
        until(lambda: lines.screen.process.poll() is not None, "the end of the shell")
    finally:
        lines.screen.hang_up()


@pytest.fixture
def line(forge: Forge) -> Forge:
    """A home with a living run and an ended one, and what a user has in folders."""
    bring(forge)
    forge.env |= {"HOME": str(forge.folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (forge.folder / ".ssh").mkdir()
    forge.write(".ssh/config", "Host gpu01 *.lab !no\n  User me\nInclude more\n")
    forge.write(".ssh/more", "Host=far\n")
    forge.write("all of it.yaml", "")
    forge.write("all.txt", "")
    (forge.folder / "specs").mkdir()
    forge.write("specs/one.yml", "")
    forge.ok("launch", forge.spec("name: past\nscripts: {over: {command: 'true'}}", "past.yaml"))
    return forge


def offered(forge: Forge, typed: str, **environ: str) -> list[str]:
    """What is offered on a command line, in its order; nothing may be said on stderr."""
    env = {**forge.env, "_FORGECTL_COMPLETE": "zsh", "_FORGECTL_LINE": f"forgectl {typed}", **environ}
    result = forge.run(env=env)
    assert (result.returncode, result.stderr) == (0, "")
    return [line.split("\t")[1] for line in result.stdout.splitlines()]


def past(forge: Forge) -> str:
    [run] = [r for r in forge.runs() if r.startswith("past-")]
    return run


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_at_a_tab(line: Forge, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    run = line.launch("name: now\nscripts: {stay: {run: PROGRAMS/stay.py, preload: []}, 'b.c': {command: sleep 1h}}")
    with shell_lines(line, shell) as lines:
        for typed, wanted in {
            "forgectl stat": "forgectl status ",
            "forgectl status now-": f"forgectl status {run} ",
            "forgectl logs past/": "forgectl logs past/over ",
            "forgectl logs st": "forgectl logs stay ",
            "forgectl logs stay/": "forgectl logs stay/0 ",
            "forgectl logs pas": f"forgectl logs {past(line)} ",
            "forgectl shutdown pas": "forgectl shutdown pas",
            "forgectl launch al": r"forgectl launch all\ of\ it.yaml ",
            "forgectl launch specs/": "forgectl launch specs/one.yml ",
            "forgectl launch spec.yaml --set scripts.st": "forgectl launch spec.yaml --set scripts.stay.",
            "forgectl launch spec.yaml --set scripts.stay.p": "forgectl launch spec.yaml --set scripts.stay.p",
            "forgectl launch spec.yaml --set scripts.stay.proc": "forgectl launch spec.yaml --set scripts.stay.procs=",
            "forgectl launch spec.yaml --set=scripts.b": "forgectl launch spec.yaml --set=scripts.b.c.",
            "forgectl run --host me@gp": "forgectl run --host me@gpu01 ",
            "forgectl init --template servi": "forgectl init --template service ",
            "forgectl logs 'no such": "forgectl logs 'no such",
            "cd /; forgectl wait now/b": "cd /; forgectl wait now/b.c ",
        }.items():
            assert lines.after_tab(typed) == wanted, typed
