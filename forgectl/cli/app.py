"""The command line as a whole, and the one place where errors become a paragraph and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from forgectl.cli.attach import attach
from forgectl.cli.call import call
from forgectl.cli.check import check
from forgectl.cli.completion import COMPLETE, completion
from forgectl.cli.events import events
from forgectl.cli.init import init
from forgectl.cli.launch import launch
from forgectl.cli.logs import logs
from forgectl.cli.plan import plan
from forgectl.cli.prune import prune
from forgectl.cli.restart import restart
from forgectl.cli.run import run as run_script
from forgectl.cli.schema import schema
from forgectl.cli.shutdown import shutdown
from forgectl.cli.status import status
from forgectl.cli.wait import wait
from forgectl.cli.why import why
from forgectl.errors import ForgeError, SpecError
from forgectl.version import __version__


class _InThisOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    name="forgectl",
    cls=_InThisOrder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="forgectl", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks of forgectl's own faults.")
@click.pass_context
def app(ctx: click.Context, debug: bool) -> None:
    """Launch, watch and shut down process groups for PyTorch, here or on machines reached by ssh."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")
        ctx.exit(64)


_COMMANDS = (
    *(launch, run_script, plan, check, status, logs, events, why, attach, wait, call, restart, shutdown, prune),
    *(schema, init, completion),
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
    try:
        if instruction := os.environ.get(COMPLETE):
            return shell_complete(app, {}, "forgectl", COMPLETE, instruction)
        with app.make_context("forgectl", sys.argv[1:]) as ctx:
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
            return _fault(e)
        _print_error(f"cannot write: {e.strerror}", "free some space where the output goes")
        return 75
    except Exception as e:
        return _fault(e)


def _fault(error: Exception) -> int:
    if _interrupted:  # caused by a Ctrl-C; CPython itself wraps one that comes in __set_name__
        return 130
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    else:
        hint = "run it again with `forgectl --debug …` and report it"
        _print_error(f"a fault of forgectl itself: {type(error).__name__}: {error}", hint)
    return 70


def _usage(error: click.UsageError) -> str:
    """Click's message, but its own sentence about an unknown option, which differs between its versions."""
    if not isinstance(error, click.NoSuchOption):
        return error.format_message()
    near = [option for option in sorted(error.possibilities or ()) if option != "--help"]
    return f"no such option: {error.option_name}" + (f"; did you mean {' or '.join(near)}?" if near else "")


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
