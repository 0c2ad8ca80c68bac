"""`forgectl help`: prints the help of a command, and says which command a mistyped name may mean."""

from __future__ import annotations

import click

from forgectl.cli import parameters
from forgectl.errors import UsageError

OTHER_WORDS = {
    "start": "launch",
    "stop": "shutdown",
    "kill": "shutdown",
    "ls": "status",
    "list": "status",
    "rm": "prune",
}
"""What other tools call a command → its name here."""


@parameters.command(
    name="help",
    examples={"forgectl help": "all commands", "forgectl help launch": "as forgectl launch --help"},
)
@parameters.argument("name", required=False, metavar="[COMMAND]", help="A command; default: all of them.")
@click.pass_context
def show_help(ctx: click.Context, name: str | None) -> None:
    """Print the help of forgectl, or of a command."""
    import sys

    top = ctx.find_root()
    group = top.command
    assert isinstance(group, click.Group)
    if name is not None:
        command = group.get_command(top, name)
        if command is None:
            raise no_such_command(group, name)
        top = command.context_class(command, info_name=name, parent=top)
    sys.stdout.write(top.get_help() + "\n")


def aliases(group: click.Group) -> dict[str, click.Command]:
    """The other names of its commands."""
    return {alias: command for command in group.commands.values() for alias in getattr(command, "aliases", ())}


def no_such_command(group: click.Group, name: str) -> UsageError:
    """The error for a name that no command has."""
    import shlex

    from forgectl.names import nearest

    if name.endswith((".py", ".yaml", ".yml")):
        near = shlex.join(["run" if name.endswith(".py") else "launch", name])
    else:
        near = OTHER_WORDS.get(name) or nearest(name, [*group.commands, *aliases(group)]) or ""
    hint = f"did you mean `forgectl {near}`?" if near else "`forgectl help` lists all commands"
    return UsageError(f"no such command: {name!r}", hint=hint)
