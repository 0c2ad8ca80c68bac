"""The command line as a whole, and the one place where errors become a paragraph and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from forgectl.cli import parameters
from forgectl.cli.attach import attach
from forgectl.cli.call import call
from forgectl.cli.check import check
from forgectl.cli.completion import COMPLETE, answer, completion
from forgectl.cli.config import config
from forgectl.cli.events import events
from forgectl.cli.help import aliases, no_such_command, show_help
from forgectl.cli.init import init
from forgectl.cli.launch import launch
from forgectl.cli.logs import logs
from forgectl.cli.manual import CODES, VARIABLES, shown_variables
from forgectl.cli.plan import plan
from forgectl.cli.prune import prune
from forgectl.cli.restart import restart
from forgectl.cli.run import run as run_script
from forgectl.cli.schema import schema
from forgectl.cli.shutdown import shutdown
from forgectl.cli.stack import stack
from forgectl.cli.status import status
from forgectl.cli.version import VERSION, version
from forgectl.cli.wait import wait
from forgectl.cli.why import why
from forgectl.errors import ForgeError, SpecError
from forgectl.names import nearest
from forgectl.version import __version__


class _Commands(click.Group):
    """The commands in their order, also by their other names."""

    context_class = parameters.Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, without aliases."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name or alias."""
        return self.commands.get(name) or aliases(self).get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names. Raises UsageError."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise no_such_command(self, args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their aliases, then what holds for all of them."""
        rows = [
            (", ".join((name, *getattr(command, "aliases", ()))), command.get_short_help_str(100))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        codes = [(str(code), about) for code, about in CODES.items()]
        variables = shown_variables(VARIABLES, whole=True)
        parameters.write_tables(formatter, {"Commands": rows, "Exit codes": codes, "Variables": variables})


@click.group(
    name="forgectl",
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", prog_name="forgectl", message=VERSION)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Launch, watch and shut down process groups for PyTorch, here or on machines reached by ssh."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")
        ctx.exit(64)


app.params.append(parameters.debug_option())

_COMMANDS = (
    *(launch, run_script, plan, check, config, status, logs, why, events, stack),
    *(attach, wait, call, restart, shutdown, prune),
    *(schema, init, completion, show_help, version),
)
for _command in _COMMANDS:
    app.add_command(_command)


_interrupted: list[int] = []


def interrupt(number: int, frame: object) -> NoReturn:
    """Handle Ctrl-C. It is remembered, since a library may turn it into another error (pydantic's core does)."""
    _interrupted.append(number)
    raise KeyboardInterrupt


def interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Have a Ctrl-C come again that was raised where Python ignores exceptions, as in a callback after an import."""
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.001)  # not now: an exception in here would be ignored, too


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    code = _run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is over: a late Ctrl-C must not change its exit code
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not sys.exit: after a Ctrl-C that was caught inside an exec(), CPython ends by SIGINT, whatever the code.
    os._exit(code)


def _run() -> int:
    # Not app.main(), which makes other exceptions of a Ctrl-C and of a broken pipe, and prints a line break.
    meta: dict[str, Any] = {}
    try:
        if os.environ.get(COMPLETE):
            answer(app, os.environ)
            return 0
        with app.make_context("forgectl", sys.argv[1:]) as ctx:
            meta = ctx.meta
            code = int(app.invoke(ctx) or 0)
        sys.stdout.flush()
        return code
    except click.exceptions.Exit as e:
        return e.exit_code
    except ForgeError as e:
        _print_error(_with_heading(e), e.hint)
        return e.exit_code
    except click.UsageError as e:
        where = e.ctx.command_path if e.ctx else "forgectl"
        _print_error(_usage(e), f"see `{where} --help`")
        return 64
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except OSError as e:
        if e.errno != errno.ENOSPC:
            return _fault(e, meta)
        _print_error(f"cannot write: {e.strerror}", "free some space where the output goes")
        return 75
    except Exception as e:
        return _fault(e, meta)


def _fault(error: Exception, meta: Mapping[str, Any]) -> int:
    if _interrupted:  # caused by a Ctrl-C; CPython itself wraps one that comes in __set_name__
        return 130
    if meta.get(parameters.DEBUG):
        traceback.print_exception(error)
    else:
        hint = "run it again with `forgectl --debug …` and report it"
        _print_error(f"a fault of forgectl itself: {type(error).__name__}: {error}", hint)
    return 70


def _usage(error: click.UsageError) -> str:
    """Click's message, but its own sentence about an unknown option, which differs between its versions."""
    if not isinstance(error, click.NoSuchOption):
        return error.format_message()
    near = nearest(error.option_name, [option for option in error.possibilities or () if option != "--help"])
    return f"no such option: {error.option_name}" + (f"; did you mean {near}?" if near else "")


def _with_heading(error: ForgeError) -> str:
    """Its message; several problems of a spec get a heading, so that each of them is a line of the paragraph."""
    if isinstance(error, SpecError) and len(error.problems) > 1:
        return f"{error.source} has {len(error.problems)} problems:\n{error.message}"
    return error.message


def _print_error(message: str, hint: str | None) -> None:
    """Print a paragraph on stderr: all lines but the first are indented.

    Escapes are removed from quoted text also where stderr is a pipe: its output may reach a terminal, too.
    """
    from forgectl.log_output.terminal_text import harmless

    first, *others = [*message.split("\n"), *([f"hint: {hint}"] if hint else [])]
    text = "\n  ".join([f"forgectl: {first}", *others])
    sys.stderr.write("".join(f"{harmless(line, color=False)}\n" for line in text.split("\n")))
