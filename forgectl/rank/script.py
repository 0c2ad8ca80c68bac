"""A rank of a script: from a fork (or a fresh interpreter) to the user's program, run as `python train.py` does."""

from __future__ import annotations

import faulthandler
import fcntl
import functools
import importlib
import os
import runpy
import signal
import socket
import sys
import termios
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from forgectl import redaction
from forgectl.boot import BOOT
from forgectl.names import DRIVER
from forgectl.rank import driver, error_file, late_variables, proctitle, stacks
from forgectl.system.files import short_path
from forgectl.system.processes import die_with_parent

LENT_SECONDS = 5.0
"""Seconds in which the launching command must answer a rank that asks for its standard input."""
STACKS = "FORGE_STACKS"
"""The variable that says where the rank can be asked for its stacks, until it has begun."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a rank whose program cannot be run; the same as a shell's."""


def begin(parent: int, request: dict[str, Any], fds: list[int]) -> Callable[[], None]:
    """Turn the process just forked into a rank. The caller runs the returned function with none of our frames below.

    `fds` are the log, then the GPU leases. The leases stay open, so they last as long as the rank.
    """
    os.setsid()
    if request["cgroup"]:
        with open(request["cgroup"], "w") as file:
            file.write("0")
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _open_streams(request["input"], fds[0])
    for lease in fds[1:]:
        os.set_inheritable(lease, True)
    os.environ.pop("FORGE_ROLE", None)
    os.environ.update(request["env"])
    if request["stacks"]:
        os.environ[STACKS] = request["stacks"]
    program = request["program"]
    if program["kind"] == "command" or request["start_method"] == "spawn":
        return functools.partial(_exec, program, request["workdir"])
    proctitle.set_title(f"forgectl rank {os.environ['FORGE_MESH']}/{os.environ['RANK']}: {program['target']}")
    _reseed()
    return functools.partial(run, program["kind"], program["target"], program["args"], request["workdir"])


def _open_streams(lender: str, log: int) -> None:
    """Give this process its standard streams: no input and the log, or what the launching command lends."""
    kind, given = _borrowed(lender) if lender else (b"", os.open(os.devnull, os.O_RDONLY))
    if kind == b"terminal":
        fcntl.ioctl(given, termios.TIOCSCTTY, 0)
    os.dup2(given, 0)
    for stream in (1, 2):
        os.dup2(given if kind == b"terminal" else log, stream)
    os.close(given)
    os.close(log)


def _borrowed(lender: str) -> tuple[bytes, int]:
    try:
        with socket.socket(socket.AF_UNIX) as connection, short_path(Path(lender)) as name:
            connection.settimeout(LENT_SECONDS)
            connection.connect(name)
            kind, (given, *_), _, _ = socket.recv_fds(connection, 100, 1)
            return kind, given
    except (OSError, ValueError):  # the command has ended, and so will the run
        return b"", os.open(os.devnull, os.O_RDONLY)


def main(arguments: list[str]) -> None:
    """`python boot.py rank WORKDIR KIND TARGET ARGS…`: a spawned rank, in an interpreter of its own."""
    workdir, kind, target, *args = arguments
    run(kind, target, args, workdir)


def run(kind: str, target: str, args: list[str], workdir: str) -> None:
    """Run a Python file or module as the main program, or serve as an actor's or driver's rank.

    An exception that ends it is written to the error file and raised.
    """
    from forgectl.rank import stdio

    rank = os.getpid()
    redaction.of_process()
    os.chdir(workdir)
    stdio.install()
    faulthandler.enable()
    if place := os.environ.pop(STACKS, ""):
        stacks.show(place)
    if "PYTHONBREAKPOINT" not in os.environ and _has_no_input():
        sys.breakpointhook = _no_breakpoint
    sys.argv = [target, *args]
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main_module
    if "__mp_main__" in sys.modules:  # children spawned by multiprocessing use this name for __main__; it was ours
        sys.modules["__mp_main__"] = main_module
    try:
        _put_first(workdir)
        if os.environ["FORGE_MESH"] == DRIVER and not driver.begin(kind):
            return
        if kind in ("file", "module") and os.environ["FORGE_MESH"] != DRIVER:
            late_variables.hide_torch()
        if kind == "actor":
            importlib.import_module("forgectl.rank.actor").run()
        elif kind == "module":
            runpy._run_module_as_main(target, alter_argv=True)  # type: ignore[attr-defined]
        else:
            file = os.path.join(workdir, target)  # noqa: PTH118
            _put_first(os.path.dirname(os.path.realpath(file)))  # noqa: PTH120 (as python does)
            _run_file(file, main_module)
    except SystemExit:
        raise
    except BaseException as e:
        e.__traceback__ = error_file.without_our_frames(e.__traceback__)
        if isinstance(e, ModuleNotFoundError) and e.name == "torch":
            _end_without_torch(target)
        if type(e).__module__ == "bdb" and _has_no_input():  # BdbQuit, at the end of input
            _no_breakpoint()
        interrupted = isinstance(e, KeyboardInterrupt)
        if not interrupted and os.getpid() == rank and (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
            error_file.write_error_file(path, e)
        _hide_our_frames(e.__traceback__)
        raise


def _has_no_input() -> bool:
    """Whether standard input is /dev/null."""
    try:
        return os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116
    except OSError:
        return True


def _no_breakpoint(*_: object, **__: object) -> NoReturn:
    """End this rank at its breakpoint, with one line that says how to have a debugger."""
    print(  # noqa: T201
        "forgectl: this rank has no terminal for its breakpoint: run it alone in the foreground, by "
        "`forgectl run -n 1` on this machine, or set PYTHONBREAKPOINT (0 skips breakpoints)",
        file=sys.stderr,
    )
    sys.exit(1)


def _end_without_torch(target: str) -> NoReturn:
    """End this rank, whose program imports torch where it is not installed, with one line that says what to do."""
    from forgectl.errors import NotInstalledError
    from forgectl.hosts.installation import install_command

    cure = install_command(sys.executable, "torch", ["torch", "numpy"])
    error = NotInstalledError(f"{target} imports torch, which {sys.executable} does not have; install it: {cure}")
    if place := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        error_file.write_error_file(place, error)
    print(f"forgectl: {error}", file=sys.stderr)  # noqa: T201
    sys.exit(error.exit_code)


def _hide_our_frames(trace: types.TracebackType | None) -> None:
    """Make the interpreter print `trace` for the exception that ends it, without our frames below."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, _: types.TracebackType | None) -> None:
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = hook


def _put_first(folder: str) -> None:
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)


def _run_file(path: str, module: types.ModuleType) -> None:
    module.__dict__.update(__file__=path, __spec__=None, __loader__=None, __cached__=None)
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 (the user's own program)


def _exec(program: dict[str, Any], workdir: str) -> None:
    """Replace this process by the program; for a Python rank with `start_method: spawn`, by a fresh interpreter."""
    os.chdir(workdir)
    if program["kind"] == "command":
        argv = [program["target"], *program["args"]]
    else:
        argv = [sys.executable, BOOT, "rank", workdir, program["kind"], program["target"], *program["args"]]
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and an exec would keep that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        error = OSError(e.errno, f"cannot run {argv[0]!r}: {e.strerror}")
        error_file.write_error_file(os.environ["TORCHELASTIC_ERROR_FILE"], error)
        os.write(2, f"forgectl: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(e, (FileNotFoundError, NotADirectoryError)) else NOT_EXECUTABLE)


def _reseed() -> None:
    """Give the global generators that are seeded at import a new seed, as a fresh interpreter would."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()  # the CPU's; the others are made after the fork, with a constant seed
    if random := sys.modules.get("numpy.random"):  # numpy imports and seeds it only at its first use
        random.seed()
