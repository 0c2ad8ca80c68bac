"""The sides of the benchmarks of actors. Each is a process that stays, and is asked for one sample at a time, by turns.

Monarch listens on abstract Unix sockets. Every user of the machine can connect to these and run code through them.
They do not reach beyond a network namespace, so Monarch's side gets one of its own.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from forge import Forge
from measure import PROGRAMS, BenchmarkError, end, environment

OURS, PLAIN = "forgectl", "monarch"
RAY_PYTHON = os.environ.get("RAY_PYTHON") or (sys.executable if importlib.util.find_spec("ray") else None)
"""An interpreter that has Ray; None if there is none."""
SIDES = (OURS, PLAIN, *(("ray",) if RAY_PYTHON else ()))
QUIET = {"MONARCH_FILE_LOG": "error"}
"""For Monarch's processes: they write to one log file for all programs of a user."""
LOOPBACK = 'PATH=$PATH:/usr/sbin:/sbin ip link set lo up && exec "$@"'


class Side:
    """A process that answers as programs/one_side.py does. `questions` and `answers` are its streams, `log` the rest.

    Its ranks end with it.
    """

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], questions: IO[bytes], answers: IO[bytes], log: Path
    ) -> None:
        self.name = name
        self._process = process
        self._questions = questions
        self._answers = answers
        self._log = log

    @property
    def pid(self) -> int:
        """Of the process that calls."""
        return self._process.pid

    def ask(self, what: str, *arguments: Any, timeout: float = 300) -> Any:
        """What a method of the side returns; BenchmarkError where it fails."""
        try:
            self._questions.write(f"{json.dumps([what, *arguments])}\n".encode())
            self._questions.flush()
            if not select.select([self._answers], [], [], timeout)[0]:
                raise self._failed(what, f"no answer within {timeout:.0f} s")
            line = self._answers.readline()
        except ConnectionError:  # BrokenPipeError too
            line = b""
        if not line:
            raise self._failed(what, f"it ended with {self._process.wait(30)}")
        answer = json.loads(line)
        if "error" in answer:
            raise self._failed(what, answer["error"][-2000:])
        return answer["value"]

    def _failed(self, what: str, why: str) -> BenchmarkError:
        said = self._log.read_text(errors="replace")[-2000:]
        return BenchmarkError(f"{what} by {self.name}: {why}\n{said}")

    def close(self, *, at_rest: bool = True) -> None:
        """Close its streams, at which it ends. `at_rest=False`: it may still be busy, so interrupt it as well."""
        if not at_rest:
            self._process.send_signal(signal.SIGINT)
        for stream in (self._questions, self._answers):
            with contextlib.suppress(ConnectionError):
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        end(self._process)


@contextmanager
def open_until_left(side: Side) -> Iterator[Side]:
    """Close the side when the block is left."""
    at_rest = False
    try:
        yield side
        at_rest = True
    finally:
        side.close(at_rest=at_rest)


@contextmanager
def side(forge: Forge, name: str) -> Iterator[Side]:
    """Start the process of a side; BenchmarkError where Monarch's cannot have a namespace."""
    folder = forge.folder()
    python = RAY_PYTHON if name == "ray" and RAY_PYTHON else sys.executable
    argv = [python, str(PROGRAMS / "one_side.py"), name]
    env = environment(FORGECTL_HOME=str(forge.home), TMPDIR=str(folder))
    if name == PLAIN:
        argv, env = [*apart(), *argv], env | QUIET
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=PROGRAMS,  # where Monarch's ranks look for modules
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    with open_until_left(by_standard_streams(name, process, folder / "log")) as opened:
        yield opened


def by_standard_streams(name: str, process: subprocess.Popen[bytes], log: Path) -> Side:
    """A side whose process was started with pipes."""
    assert process.stdin is not None and process.stdout is not None
    return Side(name, process, process.stdin, process.stdout, log)


@contextmanager
def both(forge: Forge) -> Iterator[tuple[Side, Side]]:
    """Ours, and plain Monarch's."""
    with ExitStack() as stack:
        plain = stack.enter_context(side(forge, PLAIN))  # first: it may be refused
        yield stack.enter_context(side(forge, OURS)), plain


@functools.cache
def apart() -> tuple[str, ...]:
    """What to put before a command so that it runs in a new network namespace; BenchmarkError if none can be made."""
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
        "Monarch was not started. Any user of this machine could run code through its sockets, so it must have a "
        f"network namespace of its own. That takes root and the package iproute2, and failed here: {why}"
    )
