"""The sides that actors are measured on: a process each, which is asked what to measure next, so that they take turns.

Monarch's is in a network namespace of its own. It listens on abstract Unix sockets, to which every user of a machine
may connect, and have it run what they like; they end at the namespace's border.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from forge import Forge
from measure import PROGRAMS, BenchmarkError, end, environment

PROGRAM = PROGRAMS / "actors.py"
OURS, PLAIN = "forgectl", "monarch"
SIDES = (OURS, PLAIN, *(("ray",) if importlib.util.find_spec("ray") else ()))
LOOPBACK = 'PATH=$PATH:/usr/sbin:/sbin ip link set lo up && exec "$@"'


class Side:
    """One side's process, which does what programs/actors.py says. Its ranks end with it."""

    def __init__(self, name: str, argv: Sequence[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                argv,
                env=env,
                cwd=PROGRAMS,  # where Monarch's ranks look for modules
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that calls."""
        return self._process.pid

    def ask(self, what: str, *arguments: Any, timeout: float = 600) -> Any:
        """What a method of the side returns; BenchmarkError where it fails."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{json.dumps([what, *arguments])}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            raise self._failed(what, f"it has ended with {process.wait(10)}") from None
        if not select.select([process.stdout], [], [], timeout)[0]:
            raise self._failed(what, f"no answer within {timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise self._failed(what, f"it ended with {process.wait(10)}")
        answer = json.loads(line)
        if "error" in answer:
            raise self._failed(what, answer["error"][-2000:])
        return answer["value"]

    def _failed(self, what: str, why: str) -> BenchmarkError:
        said = self._log.read_text(errors="replace")[-2000:]
        return BenchmarkError(f"{what} by {self.name}: {why}\n{said}")

    def close(self, *, at_rest: bool = True) -> None:
        """End it, as its input ends; by SIGINT where it is in the midst of something."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        if not at_rest:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        end(process)
        process.stdout.close()


@contextmanager
def side(forge: Forge, name: str) -> Iterator[Side]:
    """The process of a side, begun now; BenchmarkError where Monarch's cannot be apart."""
    started = Side(name, *_command(forge, name))
    at_rest = False
    try:
        yield started
        at_rest = True
    finally:
        started.close(at_rest=at_rest)


@contextmanager
def both(forge: Forge) -> Iterator[tuple[Side, Side]]:
    """Ours, and plain Monarch's."""
    with ExitStack() as stack:
        plain = stack.enter_context(side(forge, PLAIN))  # first: it may be refused
        yield stack.enter_context(side(forge, OURS)), plain


def _command(forge: Forge, name: str) -> tuple[list[str], dict[str, str], Path]:
    """argv, environment and log."""
    folder = forge.folder()
    argv = [sys.executable, str(PROGRAM), name]
    env = environment(FORGECTL_HOME=str(forge.home), TMPDIR=str(folder))
    if name == PLAIN:
        argv = [*apart(), *argv]
        env["MONARCH_FILE_LOG"] = "error"  # it is one file of all programs of a user
    return argv, env, folder / "log"


@functools.cache
def apart() -> tuple[str, ...]:
    """The words before a command that has it run in a network namespace of its own; BenchmarkError without one."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = ("unshare", "--net", *mapped, "sh", "-c", LOOPBACK, "sh")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
        why = done.stderr.strip() or f"it ended with {done.returncode}"
    except OSError as e:
        why = str(e)
    else:
        if not done.returncode:
            return words
    raise BenchmarkError(
        "Monarch was not started: any user of this machine may connect to its sockets, unless it is in a network "
        f"namespace of its own, and here that is not to be had (root has it, and the package iproute2): {why}"
    )
