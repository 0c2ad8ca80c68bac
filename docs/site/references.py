"""The parts of the pages that are made from the code: the reference of specs, of commands, and of exit codes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

import click

from forgectl.cli.manual import CODES, VARIABLES
from forgectl.cli.parameters import Command
from forgectl.spec.scalars import duration_text, size_text

Schema = dict[str, Any]

TITLES = {
    "Script": "A script: `scripts.NAME`",
    "Actor": "An actor: `actors.NAME`",
    "Service": "A service: `services.NAME`",
    "Driver": "The driver: `driver`",
    "Host": "A host: an entry of `hosts`",
    "HostSource": "Hosts from elsewhere: `hosts: {…}`",
    "Restart": "Restarts: `restart`",
    "Hooks": "Commands for events: `on`",
}
"""The parts of a spec whose place its name does not show, in the order of the page; others follow."""
WORDS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "`true` or `false`"}
"""Types of a JSON Schema, as people say it."""


# ---------------------------------------------------------------- specs


def spec_reference(schema: Schema) -> str:
    """A section a kind of mapping, with a table of its keys."""
    kinds: dict[str, Schema] = schema["$defs"]
    order = [*(kind for kind in TITLES if kind in kinds), *(kind for kind in kinds if kind not in TITLES)]
    sections = [_section("The spec itself", "", schema, kinds)]
    for kind in order:
        about = kinds[kind]
        title = TITLES.get(kind, f"{kind}")
        sections.append(_section(title, about.get("description", ""), _mapping(about), kinds))
    return "\n\n".join(sections)


def anchor_of(kind: str) -> str:
    """The anchor of a kind's section, which tables link to."""
    return f"spec-{kind.lower()}"


def _mapping(schema: Schema) -> Schema:
    """The long form of what may also be written as text."""
    return next((s for s in schema.get("anyOf", ()) if "properties" in s), schema)


def _section(title: str, about: str, schema: Schema, kinds: dict[str, Schema]) -> str:
    required = schema.get("required", ())
    kind = next((k for k, s in kinds.items() if _mapping(s) is schema), "spec")
    lines = [f"### {title} {{ #{anchor_of(kind)} }}", ""]
    lines += [about, ""] if about else []
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in schema["properties"].items():
        default = "**required**" if key in required else _default(value)
        meaning = _cell(value.get("description", ""))
        lines.append(f"| `{key}` | {_cell(_type(value, kinds))} | {default} | {meaning} |")
    return "\n".join(lines)


def _default(value: Schema) -> str:
    if "default" not in value or value["default"] == []:
        return ""
    default = value["default"]
    if _is_duration(value):
        return f"`{duration_text(default)}`"
    if _is_size(value):
        return f"`{size_text(default)}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(value: Schema, kinds: dict[str, Schema]) -> str:
    """What may be written, in words, with links to other sections."""
    if "$ref" in value:
        kind = value["$ref"].rpartition("/")[2]
        return f"[{re.sub('(?<=[a-z])(?=[A-Z])', ' ', kind).lower()}](#{anchor_of(kind)})"
    if _is_duration(value):
        return "a time: `90`, `90s`, `10m`, `2h`"
    if _is_size(value):
        return "a size: `512MiB`, `1GiB`"
    if "anyOf" in value:
        parts = [_type(part, kinds) for part in value["anyOf"] if part.get("pattern") != "\\$\\{"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    kind = value["type"]
    if kind == "array":
        return f"a list of {_type(value.get('items', {}), kinds)}"
    if kind == "object":
        inner = value.get("additionalProperties", {})
        if isinstance(inner, dict) and "$ref" in inner:
            return f"a map: NAME → {_type(inner, kinds)}"
        return "a map: NAME → value"
    if isinstance(kind, list):
        return "text, number or bool" if "boolean" in kind else "text or number"
    return WORDS[kind]


def _is_duration(value: Schema) -> bool:
    return any("ms|s|m|h|d" in part.get("pattern", "") for part in value.get("anyOf", ()))


def _is_size(value: Schema) -> bool:
    return any("kKMGT" in part.get("pattern", "") for part in value.get("anyOf", ()))


# ---------------------------------------------------------------- commands


def command_reference(app: click.Group) -> str:
    """A section a command: what it does, its arguments and its options."""
    top = click.Context(app, info_name="forgectl")
    return "\n\n".join(_command(path, command, top) for path, command in commands_of(app))


def commands_of(app: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """(Name, command) of each command that help shows, in its order; those of groups as `group command`."""
    context = click.Context(app, info_name="forgectl")
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{path}{name} ")


def _command(path: str, command: click.Command, top: click.Context) -> str:
    context = click.Context(command, info_name=path, parent=top)
    usage = " ".join(["forgectl", path, *command.collect_usage_pieces(context)])
    lines = [f"### forgectl {path}", "", "```text", usage, "```", "", _prose(command.help or "")]
    arguments = [(a.metavar or a.human_readable_name, getattr(a, "explained", "")) for a in _arguments(command)]
    if arguments:
        lines += ["", "| argument | meaning |", "|---|---|"]
        lines += [f"| `{_cell(name)}` | {_cell(_prose(about))} |" for name, about in arguments]
    records = [param.get_help_record(context) for param in command.get_params(context)]
    options = [(name, about) for name, about in filter(None, records) if "--help" not in name]
    if options:
        lines += ["", "| option | meaning |", "|---|---|"]
        lines += [f"| `{_cell(name)}` | {_cell(_prose(about))} |" for name, about in options]
    return "\n".join([*lines, *_declared(command)])


def _declared(command: click.Command) -> Iterator[str]:
    """What a command of ours says of itself beside click's: other names, examples, exit codes, variables."""
    if not isinstance(command, Command):
        return
    if command.aliases:
        yield f"\nAlso: {', '.join(f'`forgectl {alias}`' for alias in command.aliases)}."
    yield "\n| example | does |\n|---|---|"
    yield from (f"| `{_cell(line)}` | {_cell(about)} |" for line, about in command.examples.items())
    codes = ", ".join([*map(str, command.codes), *(["that of the program"] if command.runs_programs else [])])
    yield f"\nExit codes: {codes}."
    if command.variables:
        yield f"\nVariables: {', '.join(f'`{name}`' for name in command.variables)}."


def _arguments(command: click.Command) -> Iterable[click.Parameter]:
    return (param for param in command.params if isinstance(param, click.Argument))


def _prose(text: str) -> str:
    """A docstring, as Markdown: what stands in brackets or angles is not a link or a tag."""
    cleaned = inspect.cleandoc(text).replace("\b", "").replace("\f", "\n")
    return "`".join(
        part if i % 2 else part.replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*")
        for i, part in enumerate(cleaned.split("`"))
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ---------------------------------------------------------------- settings of actors


def settings_reference() -> str:
    """A row a setting of `options(…)` that is no attribute of ForgeActor, as the docstrings of its classes have it."""
    from forgectl.actor.options import Settings
    from forgectl.actor.service.service import ServiceConfig

    about: dict[str, str] = {}
    for cls in (ServiceConfig, Settings):
        text = inspect.cleandoc(cls.__doc__ or "")
        about |= dict(re.findall(r"^(\w+): ((?:.*\n?(?!\w+: |The others))*.*)", text, flags=re.MULTILINE))
    about["router"] = '"round_robin", "least_loaded", "session", or a `Router`.'
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        lines.append(f"| `{field.name}` | {default} | {_cell(_prose(about[field.name]))} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- exit codes and variables


def exit_codes() -> str:
    """A row an exit code."""
    rows = [f"| {code} | {_cell(about)} |" for code, about in CODES.items()]
    return "\n".join(["| code | when |", "|---|---|", *rows])


def variables() -> str:
    """A row an environment variable."""
    rows = [f"| `{name}` | {_cell(about)} |" for name, about in VARIABLES.items()]
    return "\n".join(["| variable | means |", "|---|---|", *rows])
