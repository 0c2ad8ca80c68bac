"""One rank in the foreground has the terminal of `forgectl run`, or its standard input; other ranks have none."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import Forge, processes_of, until
from tests.process.screen import Screen

ALONE = ("run", "--preload", "")


@contextlib.contextmanager
def screen(forge: Forge, *arguments: str) -> Iterator[Screen]:
    made = Screen(forge, *forge.argv(*ALONE, *arguments))
    try:
        yield made
    finally:
        made.close()


def _log(forge: Forge) -> str:
    (run,) = forge.runs()
    (log,) = forge.run_dir(run).glob("logs/*/0/rank-0.log")
    return log.read_text()


def test_a_debugger_works_and_ctrl_c_at_its_prompt_is_its_own(forge: Forge) -> None:
    forge.write(
        "debug.py",
        "import sys\nprint(sys.stdin.isatty(), sys.stdout.isatty())\nx = 41\nbreakpoint()\nprint('went on')\n",
    )
    with screen(forge, "debug.py") as it:
        it.until("True True")
        it.until("(Pdb)")
        it.type("p x + 1\r")
        it.until("42")
        for _ in range(3):
            it.until("(Pdb)")
            it.type("\x03")
        it.until("(Pdb)")
        it.type("c\r")
        it.until("went on")
        assert it.end() == 0
    assert "went on\n" in _log(forge), "the log has what the terminal shows"


def test_ctrl_c_is_for_the_program_and_ends_the_run_with_it(forge: Forge) -> None:
    forge.write(
        "wait.py",
        "import time\ntry:\n    print('in it')\n    time.sleep(3600)\n"
        "except KeyboardInterrupt:\n    print('tidied')\n    raise\n",
    )
    with screen(forge, "wait.py") as it:
        it.until("in it")
        it.type("\x03")
        it.until("tidied")
        assert it.end() == 130
        assert b"failed" not in it.shown


def test_a_second_ctrl_c_ends_a_program_that_goes_on(forge: Forge) -> None:
    forge.write(
        "deaf.py",
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('no', flush=True))\nprint('in it')\n"
        "while True:\n    signal.pause()\n",
    )
    with screen(forge, "deaf.py") as it:
        it.until("in it")
        it.type("\x03")
        it.until("no")
        it.until("again to end the run")
        it.type("\x03")
        assert it.end() == 130


def test_the_window_has_its_size_and_passes_on_a_new_one(forge: Forge) -> None:
    forge.write(
        "size.py",
        "import os, signal\n"
        "signal.signal(signal.SIGWINCH, lambda *_: None)\nprint('first', *os.get_terminal_size(), flush=True)\n"
        "while os.get_terminal_size().lines != 33:\n    signal.sigtimedwait([], 0.01)\n"
        "print('then', *os.get_terminal_size())\n",
    )
    with screen(forge, "size.py") as it:
        it.until("first 100 24")
        it.resize(33, 77)
        it.until("then 77 33")
        assert it.end() == 0


def test_what_a_killed_rank_left_of_the_terminal_is_put_right(forge: Forge) -> None:
    forge.write(
        "raw.py",
        "import os, signal, tty\ntty.setraw(0)\n"
        "print('\\x1b[?1049h\\x1b[?25l\\x1b[31mred', end='', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n",
    )
    with screen(forge, "raw.py") as it:
        assert it.end() == 137
        _, _, after = it.shown.partition(b"red")
        assert all(sequence in after for sequence in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[0m"))


def test_the_last_of_much_output_is_shown_and_logged(forge: Forge) -> None:
    forge.write("much.py", "for n in range(5000): print(n, 'x' * 50)\n")
    with screen(forge, "much.py") as it:
        assert it.end() == 0
        assert b"4999 " in it.shown
    assert _log(forge) == "".join(f"{n} {'x' * 50}\n" for n in range(5000))


def test_ctrl_z_stops_the_command_and_it_goes_on_in_the_foreground(forge: Forge) -> None:
    forge.write("ask.py", "print('in it')\nprint('got', input('? '))\n")
    shell = ["bash", "--norc", "--noprofile", "-i"]
    it = Screen(forge, *shell)
    try:
        it.type("PS1='prompt> '; " + " ".join(forge.argv(*ALONE[:1], "--preload", "''", "ask.py")) + "\r")
        it.until("in it")
        it.until("? ")
        it.type("\x1a")
        it.until("Stopped")
        it.until("prompt> ")
        it.type("fg\r")
        it.until("ask.py")
        it.type("back\r")
        it.until("got back")
        it.until("prompt> ")
        it.type("exit\r")
        it.until("exit")
        assert it.process.wait(30) == 0
    finally:
        it.close()


def test_without_a_terminal_the_one_rank_has_the_input_of_the_command(forge: Forge) -> None:
    forge.write("read.py", "import sys\nprint(sys.stdin.isatty(), repr(sys.stdin.read()))\n")
    forge.write("first.py", "print(input())\n")
    forge.write("none.py", "")
    assert forge.ok(*ALONE, "read.py", input="abc\n").endswith("False 'abc\\n'\n")
    assert forge.ok(*ALONE, "--start-method", "spawn", "first.py", input="one\ntwo\n").endswith("one\n")
    assert forge.ok(*ALONE, "cat", input="x").endswith("x\n")
    command = " ".join(forge.argv(*ALONE[:1], "--preload", "''"))
    loop = f"printf 'a\\nb\\n' | while read line; do {command} none.py >&2; echo $line; done"
    result = subprocess.run(["bash", "-c", loop], cwd=forge.folder, env=forge.env, capture_output=True, text=True)
    assert result.stdout == "a\nb\n", "a rank that reads nothing takes nothing"


def test_several_ranks_print_colours_where_they_are_asked_to(forge: Forge) -> None:
    """Their output goes to logs, so that libraries find no terminal; rich and others obey FORCE_COLOR."""
    program = "from rich.console import Console; Console(width=80).print('[red]alarm[/red]')\n"
    forge.write("rich_colours.py", program)
    forge.env.pop("NO_COLOR")
    with screen(forge, "-n", "2", "rich_colours.py") as it:
        assert it.end() == 0
        assert b"\x1b[31malarm" not in it.shown and it.shown.count(b"alarm") == 2
    with screen(forge, "-n", "2", "-e", "FORCE_COLOR=1", "rich_colours.py") as it:
        assert it.end() == 0
        assert it.shown.count(b"\x1b[31malarm") == 2
    forge.env["NO_COLOR"] = "1"
    with screen(forge, "-n", "2", "-e", "FORCE_COLOR=1", "-e", "NO_COLOR=", "rich_colours.py") as it:
        assert it.end() == 0
        assert b"\x1b[31malarm" not in it.shown and it.shown.count(b"alarm") == 2, "the reader wants none"


def test_several_ranks_have_no_input(forge: Forge) -> None:
    forge.write("read.py", "import sys\nprint(repr(sys.stdin.read()))\n")
    lines = forge.ok(*ALONE, "-n", 2, "read.py", input="abc\n").splitlines()
    assert [line.partition(" │ ")[2] for line in lines] == ["''", "''"]


@pytest.mark.parametrize("stop", ["breakpoint()", "import pdb; pdb.set_trace()"])
def test_a_breakpoint_without_a_terminal_says_what_to_do(forge: Forge, stop: str) -> None:
    forge.write("debug.py", f"{stop}\nprint('went', 'on')\n")
    result = forge.run(*ALONE, "-n", 2, "debug.py")
    assert result.returncode == 1
    assert "`forgectl run -n 1`" in result.stdout
    assert "Traceback" not in result.stdout
    skipped = forge.run(*ALONE, "-n", 2, "-e", "PYTHONBREAKPOINT=0", "debug.py")
    assert ("went on" in skipped.stdout) == (stop == "breakpoint()")


def test_a_launcher_that_is_killed_takes_its_rank_along(forge: Forge) -> None:
    forge.write("wait.py", "import time\nprint('in it')\ntime.sleep(3600)\n")
    with screen(forge, "wait.py") as it:
        it.until("in it")
        (run,) = forge.runs()
        it.process.kill()
        until(lambda: not processes_of(run), "the end of the rank")
