"""What commands are made of: click's commands, with help of arguments, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from forgectl.cli import candidates
from forgectl.cli.manual import CODES, OF_PROGRAM, Page, shown_variables

F = TypeVar("F", bound=Callable[..., Any])

DEBUG = "forgectl.debug"
"""The key of a context's `meta` that says whether tracebacks are wanted."""


class _Argument(click.Argument):
    def __init__(self, declarations: Sequence[str], *, explained: str, **settings: Any) -> None:
        super().__init__(declarations, **settings)
        self.explained = f"{explained}  [required]" if self.required else explained


class Context(click.Context):
    """click's, but for pages of help that fit narrow terminals."""

    formatter_class = Page


class Command(click.Command):
    """A command whose help also has its other names, arguments, examples, exit codes and environment variables."""

    context_class = Context

    def __init__(
        self,
        *args: Any,
        aliases: Sequence[str] = (),
        examples: Mapping[str, str] | None = None,
        codes: Sequence[int] = (),
        runs_programs: bool = False,
        variables: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.aliases = tuple(aliases)
        self.examples = examples or {}
        self.codes = tuple(sorted({0, 64, *codes}))
        self.runs_programs = runs_programs
        self.variables = tuple(variables)
        self.params.append(debug_option(hidden=True))

    def shown_codes(self) -> list[tuple[str, str]]:
        """Its exit codes, and when it ends with them."""
        shown = [(str(code), CODES[code]) for code in self.codes]
        return [*shown, ("other", OF_PROGRAM)] if self.runs_programs else shown

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what it does, and by which other names it goes."""
        super().format_help_text(ctx, formatter)
        if self.aliases:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(f"Aliases: {', '.join(sorted({str(self.name), *self.aliases}))}")

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
        """Write its arguments, its options, and what its author gave beside them."""
        arguments = [(str(a.metavar), a.explained) for a in self.params if isinstance(a, _Argument)]
        write_tables(formatter, {"Arguments": arguments})
        super().format_options(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                assert isinstance(formatter, Page)
                formatter.write_examples([*self.examples.items()])
        variables = shown_variables(self.variables, whole=False)
        write_tables(formatter, {"Exit codes": self.shown_codes(), "Variables": variables})


def write_tables(formatter: click.HelpFormatter, tables: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write a section a table, but for empty ones."""
    for title, rows in tables.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def command(**settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function, which returns its exit code or None for 0; `settings` are those of `Command`."""
    return click.command(cls=Command, **settings)


def debug_option(*, hidden: bool = False) -> click.Option:
    """`--debug`, which is taken before and after a command's name."""
    about = "Show tracebacks of forgectl's own faults."
    return click.Option(["--debug"], is_flag=True, expose_value=False, hidden=hidden, callback=_note, help=about)


def _note(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = value or ctx.meta.get(DEBUG, False)


def argument(name: str, *, help: str, metavar: str, **settings: Any) -> Callable[[F], F]:
    """Give commands an argument that their help explains."""

    def decorate(function: F) -> F:  # each time anew: one of click 8.1.0 forgets its class when it is used
        return click.argument(name, cls=_Argument, explained=help, metavar=metavar, **settings)(function)

    return decorate


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
    "spec",
    required=False,
    metavar="[SPEC]",
    help="A YAML spec; default: forge.yaml, else forge.yml, of this folder.",
    type=click.Path(path_type=Path),
    shell_complete=candidates.specs,
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="Override a value of the spec, as in scripts.sft.procs=4.",
    shell_complete=candidates.overrides,
)
ranks = click.option("--ranks", metavar="0,2-5", help="Only these ranks.")
no_prefix = click.option("--no-prefix", is_flag=True, help="The lines alone, without rank and host.")
quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors, and why it failed.")
run_name = click.option("--name", metavar="NAME", help="Name of the run; default: the spec's.")
detach = click.option("--detach", "-d", is_flag=True, help="Return as soon as all meshes are up.")
timeout = click.option("--timeout", type=SECONDS, metavar="S", help="Give up unless all is up in S seconds.")
run_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the run as JSON when it is up (-d) or has ended; logs go to stderr."
)


def any_name(
    name: str = "name",
    *,
    metavar: str = "[NAME]",
    default: str = "the one living run",
    ended: bool = True,
    **settings: Any,
) -> Callable[[F], F]:
    """Give a command an argument that may name a run, a mesh or a rank; `ended`: also of runs that are over."""
    about = f"RUN, MESH, RUN/MESH or [RUN/]MESH/RANK; default: {default}."
    there = candidates.names(ended=ended, ranks=True)
    return argument(name, metavar=metavar, help=about, required=False, shell_complete=there, **settings)


def since(what: str) -> Callable[[F], F]:
    """Give a command `--since`, which leaves out what is older."""
    about = f"Only {what} since then: 10m (ago), 03:00, 2026-11-22T03:00:00Z."
    return click.option("--since", metavar="TIME", help=about)


def output(function: F) -> F:
    """Give a command the options about the ranks' output: `ranks`, `no_prefix` and `quiet`."""
    return ranks(no_prefix(quiet(function)))
