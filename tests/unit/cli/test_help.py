"""Pages of help: they fit their terminal, and what they say of commands is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest

from forgectl.cli import app as command_line
from forgectl.cli.app import app
from forgectl.cli.help import OTHER_WORDS
from forgectl.cli.manual import CODES, VARIABLES
from forgectl.cli.output import Output, output_of
from forgectl.cli.parameters import Command
from forgectl.cli.views.json_text import json_text
from forgectl.errors import UsageError
from tests.pages import commands_in
from tests.unit.test_pages import OTHER_PROGRAMS, parsed

SOURCES = Path(__file__).parents[3] / "forgectl"
COMMANDS = [command for command in app.commands.values() if isinstance(command, Command)]


def page(command: click.Command) -> str:
    top = app.context_class(app, info_name="forgectl")
    return (
        top.get_help()
        if command is app
        else command.context_class(command, info_name=command.name, parent=top).get_help()
    )


def words_of(text: str) -> list[str]:
    """The words of a page, whole where a line ends at a hyphen of one."""
    return re.sub(r"(?<=\w-)\n +", "", text).split()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    whole = {command: words_of(page(command)) for command in (app, *COMMANDS)}
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in (app, *COMMANDS):
        text = page(command)
        assert max(map(len, text.splitlines())) <= min(columns, 100), text
        assert words_of(text) == whole[command]


def test_every_command_has_its_examples_codes_and_variables() -> None:
    assert {*app.commands.values()} == {*COMMANDS}
    for command in COMMANDS:
        text = " ".join(page(command).split())
        assert command.examples, command.name
        for example, about in command.examples.items():
            assert f"{example} {about}" in text
        assert {0, 64} <= {*command.codes} <= {*CODES}
        assert all(f" {code} {CODES[code]}" in text for code in command.codes)
        assert {*command.variables} <= {*VARIABLES} and all(f" {name} " in text for name in command.variables)


@pytest.mark.parametrize("example", [e for command in COMMANDS for e in command.examples])
def test_examples_are_taken_by_the_commands_they_are_of(example: str) -> None:
    """Those that need no run are also run by the tests of pages."""
    [inner] = re.findall(r"[$<]\((.*)\)", example) or [example]
    for program, *arguments in commands_in(inner):
        if program == "forgectl":
            parsed(arguments)
        else:
            assert program in OTHER_PROGRAMS


def test_each_example_is_of_its_own_command() -> None:
    for command in COMMANDS:
        names = {str(command.name), *command.aliases, *("--version" if command.name == "version" else "",)}
        for example in command.examples:
            assert any(re.search(rf"forgectl {name}\b", example) for name in names), example


def test_the_variables_are_those_that_the_code_reads() -> None:
    read = "".join(path.read_text() for path in SOURCES.rglob("*.py") if path.name != "manual.py")
    assert all(re.search(rf"\b{name}\b", read) for name in VARIABLES)


def test_an_alias_is_the_command_itself() -> None:
    context = click.Context(app)
    assert {a: app.get_command(context, a) for a in ("up", "down", "ps")} == {
        "up": app.commands["launch"], "down": app.commands["shutdown"], "ps": app.commands["status"],
    }  # fmt: skip
    assert re.search(r"^  launch, up +Start everything", page(app), flags=re.MULTILINE)
    assert "\n  Aliases: launch, up\n" in page(app.commands["launch"])
    assert not {*app.commands} & {alias for command in COMMANDS for alias in command.aliases}
    assert {*OTHER_WORDS.values()} <= {*app.commands} and not {*OTHER_WORDS} & {*app.commands}


@pytest.mark.parametrize("words", [["--debug", "schema"], ["schema", "--debug"]])
def test_tracebacks_are_shown_with_debug_before_and_after_a_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("forgectl.spec.json_schema.json_schema", fails)
    monkeypatch.setattr(sys, "argv", ["forgectl", *words])
    assert command_line._run() == 70
    assert 'raise RuntimeError("a fault")' in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["forgectl", "schema"])
    assert command_line._run() == 70
    assert capsys.readouterr().err == (
        "forgectl: a fault of forgectl itself: RuntimeError: a fault\n"
        "  hint: run it again with `forgectl --debug …` and report it\n"
    )


def test_what_is_shown_of_ranks() -> None:
    all_of_them, some = output_of(None, False, False), output_of("0,2-3", True, False)
    assert all_of_them == Output() and all_of_them.rank(7) and all_of_them.rank(None)
    assert [rank for rank in range(5) if some.rank(rank)] == [0, 2, 3] and not some.prefix
    assert not output_of(None, False, True).rank(0) and not output_of(None, False, False, detach=True).rank(0)
    assert output_of(None, False, True, detach=True).quiet
    for words in (("0", False, True, False), (None, True, True, False), ("0", False, False, True)):
        with pytest.raises(UsageError, match="is about output"):
            output_of(*words[:3], detach=words[3])


def test_documents_are_json_of_any_number() -> None:
    odd = {"loss": [float("nan"), 1.5, float("inf"), -float("inf")], "n": (1, None, True, "NaN")}
    assert json_text(odd, indent=None) == (
        '{"loss": ["NaN", 1.5, "Infinity", "-Infinity"], "n": [1, null, true, "NaN"]}\n'
    )
