"""What the pages show is true: commands and options exist, specs are valid, figures are those of the results.

`tests/process/test_pages.py` runs what can be run; `tests/types/` checks the Python examples.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
import runpy
from pathlib import Path

import click
import pages as tables
import pytest
import yaml
from references import (
    anchor_of,
    command_reference,
    commands_of,
    exit_codes,
    settings_reference,
    spec_reference,
    variables,
)

import forgectl
from forgectl.cli.app import app
from forgectl.cli.parameters import Command
from forgectl.errors import ForgeError, SpecError
from forgectl.spec.json_schema import json_schema
from forgectl.spec.load import parse
from tests.pages import LANGUAGES, PAGES, TOP, Block, blocks_of, commands_in

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
OTHER_PROGRAMS = {"cat", "cd", "echo", "git", "jq", "kill", "py-spy", "source", "ssh", "touch", "torchrun"}
"""Programs of others that a page may show."""
ENVIRON = {"HF_TOKEN": "secret", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "gpu[01-02]", "SLURM_JOB_NUM_NODES": "2"}


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    unknown = [str(block) for block in blocks_of(page) if block.language not in LANGUAGES]
    assert not unknown
    assert page.read_text().count("\n```") == 2 * len(blocks_of(page))


@pytest.mark.parametrize("block", of("console"), ids=str)
def test_commands_and_their_options_exist(block: Block) -> None:
    files = {other.file for other in blocks_of(block.page)}
    for line, _ in block.steps:
        for words in commands_in(line):
            program, *arguments = words
            if program == "forgectl":
                parsed(arguments)
            elif program == "pip":
                installs(arguments)
            elif program == "make":
                rules = (TOP / "Makefile").read_text().replace("$(READY)", ".venv/.ready")
                assert all(f"\n{target}:" in rules for target in arguments)
            elif program == "python":
                assert arguments[0] in files, f"no block of the page is {arguments[0]}"
            else:
                assert program in OTHER_PROGRAMS, line


def parsed(arguments: list[str]) -> None:
    """Let the real parser read a command line; it raises click.UsageError for what does not exist."""
    with contextlib.suppress(click.exceptions.Exit), app.make_context("forgectl", list(arguments)) as top:  # --version
        first = "_protected_args" if hasattr(top, "_protected_args") else "protected_args"  # the latter in click 8.1
        name, command, rest = app.resolve_command(top, [*getattr(top, first), *top.args])
        assert command is not None
        command.make_context(name, list(rest), parent=top)


def installs(arguments: list[str]) -> None:
    offered = (TOP / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = ", offered, flags=re.MULTILINE)
    assert arguments[0] == "install"
    for named in re.findall(r"^\.\[(.+)\]$", "\n".join(arguments), flags=re.MULTILINE):
        assert set(named.split(",")) <= set(extras)
    assert not any(word.startswith("forgectl") for word in arguments), "forgectl is on no package index"


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_specs_are_valid(block: Block, tmp_path: Path) -> None:
    if block.mark == "wrong":
        with pytest.raises(SpecError):
            loaded(block.text, tmp_path)
    else:
        loaded(block.text, tmp_path)


def loaded(text: str, folder: Path) -> None:
    """Read a spec, or a part of one, in a folder that has the programs it names."""
    document = yaml.safe_load(text)
    if not document.keys() & {"actors", "services", "scripts", "driver"}:
        text += "\nscripts: {anything: {command: 'true'}}\n"
    for mesh in [*document.get("scripts", {}).values(), document.get("driver") or {}]:
        if "run" in mesh:
            (folder / mesh["run"].split()[0]).touch()
    if isinstance(hosts := document.get("hosts"), dict) and "file" in hosts:
        (folder / hosts["file"]).write_text("gpu01 slots=8\nuser@gpu02\n")
    parse(text.encode(), source="page.yaml", folder=folder, environ=ENVIRON)


def test_the_readme_is_short() -> None:
    assert len((TOP / "README.md").read_text().splitlines()) <= 150


def test_a_package_page_has_no_link_that_leads_nowhere() -> None:
    for_a_package_page = runpy.run_path(str(TOP / "setup.py"))["for_a_package_page"]
    readme = (TOP / "README.md").read_text()
    links = re.compile(r"\]\((?!https:|#)[^)]*\)")
    assert links.search(readme)
    without = for_a_package_page(readme, "")
    assert not links.search(without) and "[Specs]" not in without and "Specs has every key" in without
    named = for_a_package_page(readme, 'Repository = "https://forge.example/forgectl"\n')
    assert not links.search(named) and "<!--" not in named
    assert "](https://forge.example/forgectl/blob/main/docs/spec.md)" in named
    assert "](https://forge.example/forgectl/raw/main/docs/assets/launch.svg)" in named


def test_the_tables_and_charts_are_those_of_the_results() -> None:
    """`python benchmarks/pages.py` writes them."""
    found = tables.results()
    for page in tables.PAGES:
        assert tables.filled_in(page.read_text(), found) == page.read_text(), f"{page.name} is old"
    for name, text in tables.charts(found).items():
        assert (tables.ASSETS / name).read_text() == text, f"{name} is old"
    shown = "".join(page.read_text() for page in tables.PAGES)
    assert all(f"<!-- benchmark {name} -->" in shown for name in found), "a results file is on no page"


def test_the_spec_reference_has_every_key_of_every_kind() -> None:
    schema = json_schema()
    text = spec_reference(schema)
    sections = {m[1]: m[0] for m in re.finditer(r"^### .*\{ #(\S+) \}\n(?:(?!^###).*\n?)*", text, flags=re.MULTILINE)}
    kinds = {"spec": schema, **schema["$defs"]}
    for kind, about in kinds.items():
        mapping = next((part for part in about.get("anyOf", ()) if "properties" in part), about)
        for key, value in mapping["properties"].items():
            section = sections[anchor_of(kind)]
            assert f"| `{key}` |" in section
            assert value["description"].split(";")[0].replace("|", "\\|") in section
    assert set(re.findall(r"\(#(spec-\w+)\)", text)) <= set(sections)
    assert "| `lease` | a time: `90`, `90s`, `10m`, `2h` | `30s` |" in text
    assert "| `log_limit` | a size: `512MiB`, `1GiB` | `2GiB` |" in text


def test_the_command_reference_has_every_command_argument_and_option() -> None:
    text = command_reference(app)
    for path, command in commands_of(app):
        section = text.partition(f"### forgectl {path}\n")[2].partition("\n### ")[0]
        assert section, path
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert all(name in section for name in param.opts), param.opts
            elif isinstance(param, click.Argument):
                assert f"| `{param.metavar}" in section
        if isinstance(command, Command):
            assert all("| `" + example.replace("|", "\\|") + "` |" in section for example in command.examples)
            assert all(f"`forgectl {alias}`" in section for alias in command.aliases)
            assert all(f"`{name}`" in section for name in command.variables)
            assert f"Exit codes: {', '.join(map(str, command.codes))}" in section
    assert set(commands_of(app)) >= {(name, command) for name, command in app.commands.items() if not command.hidden}
    overview = (TOP / "docs/commands.md").read_text()
    assert "<!-- generated: command reference -->" in overview


def test_the_exit_codes_are_those_of_the_errors() -> None:
    text = exit_codes()
    errors = [e for e in vars(forgectl.errors).values() if isinstance(e, type) and issubclass(e, ForgeError)]
    assert {str(e.exit_code) for e in errors} <= set(re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE))


def test_the_api_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: forgectl\.(\w+)$", (TOP / "docs/api.md").read_text(), flags=re.MULTILINE)
    assert sorted(shown) == sorted(set(forgectl.__all__) - {"__version__"})


def test_the_settings_of_actors_are_all_explained() -> None:
    text = settings_reference()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.+) \|$", text, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [field.name for field in dataclasses.fields(forgectl.Settings)]
    assert all(about.endswith(".") and "setting" not in about for _, about in rows), text
    assert "The others" not in text


def test_the_variables_of_forgectl_are_on_the_page_of_commands() -> None:
    sources = "".join(path.read_text() for path in (TOP / "forgectl").rglob("*.py"))
    named = set(re.findall(r"\bFORGECTL_[A-Z_]+\b", sources)) - {"FORGECTL_COMPLETE"}  # what shells set
    assert "<!-- generated: variables -->" in (TOP / "docs/commands.md").read_text()
    assert not {name for name in named if f"| `{name}` |" not in variables()}


def test_the_messages_of_the_page_of_troubleshooting_are_those_of_the_code() -> None:
    """Each heading in backticks is a message; its words between `…` and colons are in a string of the code."""
    strings = []
    for path in [*(TOP / "forgectl").rglob("*.py"), *(TOP / "actors").rglob("*.py")]:
        strings += [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    ours = "\n".join(text for text in strings if isinstance(text, str))
    headings = re.findall(r"^### `([^`]+)`$", (TOP / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(headings) > 30
    for heading in headings:
        for words in filter(None, (part.strip(" ;") for part in re.split("…|: ", heading))):
            assert words in ours, f"{heading!r}: no message has {words!r}"
