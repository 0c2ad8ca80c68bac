"""The Typer application, and the one place where errors become a paragraph and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import click
import typer

from forgectl.cli.call import call
from forgectl.cli.check import check
from forgectl.cli.init import init
from forgectl.cli.launch import launch
from forgectl.cli.logs import logs
from forgectl.cli.plan import plan
from forgectl.cli.run import run as run_script
from forgectl.cli.schema import schema
from forgectl.cli.shutdown import shutdown
from forgectl.cli.status import status
from forgectl.errors import ForgeError
from forgectl.version import __version__

app = typer.Typer(
    name="forgectl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is as readable, and twice as fast
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Launch, watch and shut down process groups for PyTorch, here or on machines reached by ssh.",
)

COMMANDS: tuple[tuple[str, Callable[..., Any], dict[str, Any]], ...] = (
    ("launch", launch, {}),
    (
        "run",
        run_script,
        {"context_settings": {"allow_interspersed_args": False, "ignore_unknown_options": False}},
    ),
    ("plan", plan, {}),
    ("check", check, {}),
    ("status", status, {}),
    ("logs", logs, {}),
    ("call", call, {"context_settings": {"ignore_unknown_options": True}}),  # an argument may be -4
    ("shutdown", shutdown, {}),
    ("schema", schema, {}),
    ("init", init, {}),
)
for _name, _command, _settings in COMMANDS:
    app.command(_name, **_settings)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"forgectl {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of forgectl's own faults.")] = False,
) -> None:
    """Options of all commands."""


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
    try:
        code = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except ForgeError as e:
        _print_error(e.message, e.hint)
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        sys.stdout.write(e.format_message() + "\n")
        return 64
    except click.UsageError as e:
        where = e.ctx.command_path if e.ctx else "forgectl"
        _print_error(e.format_message(), f"see `{where} --help`")
        return 64
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except SystemExit as e:  # Typer's answer to a broken pipe
        return 141 if isinstance(e.__context__, BrokenPipeError) else int(e.code or 0)
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


def _print_error(message: str, hint: str | None) -> None:
    """Print a paragraph on stderr, without escapes from quoted text: a pipe's output may reach a terminal, too."""
    from forgectl.log_output.terminal_text import harmless

    text = f"forgectl: {message}" + (f"\n  hint: {hint}" if hint else "")
    sys.stderr.write("".join(f"{harmless(line, color=False)}\n" for line in text.split("\n")))
