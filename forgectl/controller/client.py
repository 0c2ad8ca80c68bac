"""How the CLI talks to controllers: starts them, connects and asks. Blocking, and cheap to import."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from forgectl.boot import BOOT
from forgectl.controller.run_dir import RunDir
from forgectl.errors import InternalError, TimedOutError
from forgectl.model.status import RunStatus
from forgectl.protocol.control import CONTROLLER_TO_CLI, GetStatus, HostStacks, ShowStacks, StatusReport
from forgectl.system.daemons import let_go
from forgectl.system.files import open_to_append
from forgectl.version import __version__
from forgectl.wire.envelope import Hello, ProtocolError, Refusal
from forgectl.wire.unix_sockets import Connection, dial

START_SECONDS = 30.0
ANSWER_SECONDS = 10.0
CONTROLLERS = 20
"""Controllers that one command starts, one after the other, before it reports that none stays alive."""


class _Killed(InternalError):
    """A controller was killed by SIGKILL before it could report anything."""


def start_controller(
    run: RunDir,
    secrets: dict[str, str] | None = None,
    *,
    adopt: bool = False,
    lock: int | None = None,
    own: bool = False,
    handed: Mapping[str, Sequence[int]] = MappingProxyType({}),
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Start the run's controller as a daemon; returns once it, or one that another process started, listens.

    It inherits `lock`, the run's lock, so that no other controller can be first. It also inherits `handed`: for each
    host, descriptors of what was started there before (see `transport.ways`). `own`: the run ends with this process.
    `meanwhile` is called while the controller starts. Raises InternalError.
    """
    options = ["--adopt"] if adopt else []
    options += [f"--lock={lock}"] if lock is not None else []
    options += [f"--owner={os.getpid()}"] if own else []
    options += [f"--handed={json.dumps(dict(handed))}"] if handed else []
    log = open_to_append(run.path / "controller.log")
    try:
        process = subprocess.Popen(
            [sys.executable, BOOT, "controller", str(run.path), *options],
            env={**os.environ, "FORGE_RUN_ID": run.run, "FORGE_ROLE": "controller"},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            pass_fds=(*(() if lock is None else (lock,)), *(fd for fds in handed.values() for fd in fds)),
        )
    finally:
        os.close(log)
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(secrets or {}).encode() + b"\n")
    meanwhile()
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    if not ready or not process.stdout.readline():
        if ready and process.wait() == -signal.SIGKILL:
            raise _Killed(f"the controller of run {run.run} was killed as it started")
        raise InternalError(
            f"the controller of run {run.run} did not start: {_last_line(run.path / 'controller.log')}",
            hint=f"see {run.path / 'controller.log'}",
        )
    process.stdout.close()
    let_go(process)


def connect(run: RunDir) -> Connection | None:
    """A greeted connection to the run's controller, which is started again if it has died; None if the run has ended.

    Raises TimedOutError if the controller does not answer, InternalError if none can be started.
    """
    for attempt in range(CONTROLLERS + 1):
        if run.read_final() is not None:
            return None
        try:
            return _greet(run, Connection(dial(run.control_socket, ANSWER_SECONDS), CONTROLLER_TO_CLI))
        except (FileNotFoundError, ConnectionError):
            run.read_plan()  # no controller can run without it
            if run.has_controller():
                _wait_until_it_listens(run)
            elif attempt < CONTROLLERS:
                with contextlib.suppress(_Killed):
                    start_controller(run, adopt=True)
        except (TimeoutError, ProtocolError) as e:
            raise _no_answer(run, e) from None
    raise InternalError(f"no controller of run {run.run} stays alive", hint=f"see {run.path / 'controller.log'}")


def _wait_until_it_listens(run: RunDir) -> None:
    """Wait for a controller that is starting or ending; starting another one now would achieve nothing."""
    end = time.monotonic() + START_SECONDS
    while run.has_controller() and run.read_final() is None:
        with contextlib.suppress(FileNotFoundError, ConnectionError, TimeoutError):
            dial(run.control_socket, ANSWER_SECONDS).close()
            return
        if time.monotonic() > end:
            raise _no_answer(run, TimeoutError(f"it does not listen after {START_SECONDS:g} s"))
        time.sleep(0.01)


def _greet(run: RunDir, line: Connection) -> Connection:
    line.send(Hello(__version__, run.run))
    answer = line.receive(ANSWER_SECONDS)
    if isinstance(answer, Refusal):
        raise InternalError(f"run {run.run}: {answer.message}", hint=answer.hint)
    if answer is None:
        raise ConnectionResetError
    return line


def document(run: RunDir, *, stats: bool = False) -> RunStatus:
    """The run's present or final state; `stats` adds what its ranks use. Raises as `connect`."""
    while True:
        line = connect(run)
        if line is None:
            final = run.read_final()
            if final is not None:
                return final
            continue
        with contextlib.closing(line):
            answer = ask(run, line, GetStatus(stats))
            if isinstance(answer, StatusReport):
                return answer.run
        # The controller ended or died while we asked: try again.


def glance(runs: Sequence[RunDir], seconds: float) -> dict[str, RunStatus]:
    """Run id → state of those runs whose controllers answer. It starts none, and takes `seconds` at most in all."""
    end = time.monotonic() + seconds
    asked: dict[str, Connection] = {}
    for run in runs:  # ask all before waiting for any
        with contextlib.suppress(OSError):
            line = asked[run.run] = Connection(dial(run.control_socket, _left(end)), CONTROLLER_TO_CLI)
            line.send(Hello(__version__, run.run))
            line.send(GetStatus())
    found: dict[str, RunStatus] = {}
    for name, line in asked.items():
        with contextlib.closing(line), contextlib.suppress(OSError, ProtocolError):
            while (answer := line.receive(_left(end))) is not None:
                if isinstance(answer, StatusReport):
                    found[name] = answer.run
                    break
    return found


def _left(end: float) -> float:
    return max(0.001, end - time.monotonic())


def ask(run: RunDir, line: Connection, *requests: Any) -> Any:
    """Send requests; returns the next message, or None if the controller has ended or died. Raises TimedOutError."""
    try:
        for request in requests:
            line.send(request)
        return line.receive(ANSWER_SECONDS)
    except ConnectionError:
        return None
    except (TimeoutError, ProtocolError) as e:
        raise _no_answer(run, e) from None


def stacks(run: RunDir, request: ShowStacks) -> Iterator[HostStacks]:
    """Where ranks are, host by host; nothing if the run has ended. Raises as `connect`."""
    line = connect(run)
    if line is None:
        return
    with contextlib.closing(line):
        try:
            line.send(request)
            while isinstance(part := line.receive(request.seconds + ANSWER_SECONDS), HostStacks):
                yield part
        except ConnectionError:
            return
        except (TimeoutError, ProtocolError) as e:
            raise _no_answer(run, e) from None


def _no_answer(run: RunDir, why: Exception) -> TimedOutError:
    return TimedOutError(
        f"the controller of run {run.run} does not answer: {why}",
        hint="is it stopped or starved? If it is stuck, kill it: the next command starts another",
    )


def wait_gone(status: RunStatus, seconds: float = 5.0) -> None:
    """Wait until the controller process of an ended run has exited, for at most `seconds`."""
    try:
        pidfd = os.pidfd_open(status.controller.pid)
    except OSError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(pidfd)


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it printed nothing"
