"""What commands are made of: click's commands, with help of arguments, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from forgectl.cli import candidates

F = TypeVar("F", bound=Callable[..., Any])


class _Argument(click.Argument):
    def __init__(self, declarations: Sequence[str], *, explained: str, **settings: Any) -> None:
        super().__init__(declarations, **settings)
        self.explained = f"{explained}  [required]" if self.required else explained


class Command(click.Command):
    """A command whose help has a section of arguments beside that of options, with every version of click."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments. In a completion the last may be an option without its value: click would read nothing."""
        if ctx.resilient_parsing and args and args[-1].startswith("-"):
            args = args[:-1]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete the command's options, but files after a program, which has options of its own."""
        program = [p for p in self.params if isinstance(p, _Argument) and ctx.params.get(p.name or "")]
        if program and not ctx.allow_interspersed_args:
            return candidates.files(ctx, program[0], incomplete)
        return super().shell_complete(ctx, incomplete)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        arguments = [(str(a.metavar), a.explained) for a in self.params if isinstance(a, _Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        super().format_options(ctx, formatter)


def command(**settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function, which returns its exit code or None for 0."""
    return click.command(cls=Command, **settings)


def argument(name: str, *, help: str, metavar: str, **settings: Any) -> Callable[[F], F]:
    """Give a command an argument that its help explains."""
    return click.argument(name, cls=_Argument, explained=help, metavar=metavar, **settings)


SECONDS = click.FloatRange(min=0.0)

grace = click.option(
    "--timeout",
    type=SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds between SIGTERM and SIGKILL.",
)
force = click.option("--force", is_flag=True, help="SIGKILL at once.")
replace = click.option("--replace", is_flag=True, help="End the living run of that name first, and take its place.")
spec = argument(
    "spec", metavar="SPEC", help="A YAML spec.", type=click.Path(path_type=Path), shell_complete=candidates.specs
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="Override a value of the spec, as in scripts.sft.procs=4.",
    shell_complete=candidates.overrides,
)
run_name = click.option("--name", metavar="NAME", help="Name of the run; default: the spec's.")
detach = click.option("--detach", "-d", is_flag=True, help="Return as soon as all meshes are up.")
timeout = click.option("--timeout", type=SECONDS, metavar="S", help="Give up unless all is up in S seconds.")
run_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the run as JSON when it is up (-d) or has ended; logs go to stderr."
)
