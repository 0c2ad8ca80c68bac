"""Dials a host with the user's own ssh and runs our code there: one constant command, everything else on stdin."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from forgectl.errors import BY_EXIT_CODE, ForgeError, UnreachableError
from forgectl.protocol.host_survey import RELAY_TO_LAUNCHER, RelayReady
from forgectl.protocol.tree_sync import RELAY_TO_SYNC
from forgectl.system.daemons import let_go
from forgectl.transport import ssh_errors
from forgectl.transport.bundle import bundle, stage
from forgectl.transport.destination import Destination, program
from forgectl.transport.ssh_errors import StageReply
from forgectl.wire.codec import from_json
from forgectl.wire.envelope import ProtocolError, Refusal, decode
from forgectl.wire.unix_sockets import Connection

DIAL_SECONDS = 30.0
"""From the start of ssh to the relay's first message, with the transfer of our code over a slow link."""
ANSWER_SECONDS = 60.0
AT_ONCE = 8
"""Dials to one destination at a time. By default sshd drops some connections if over ten have not logged in yet."""
TRIES = 8
"""Dials until a busy sshd counts as one that does not let us in: 10 to 15 s, a few logins of a loaded machine."""
LONGEST_PAUSE = 4

COMMAND = (
    'exec sh -c \'IFS= read -r p && IFS= read -r c && case $p in "~/"*) p=$HOME/${p#??};; esac && exec "$p" -c "$c"\''
)
"""All that the remote shell, whichever it is, has to parse. It reads the interpreter and its first line of code."""
LOADER = (
    'import os;n=int(b"".join(iter(lambda:os.read(0,1)or b"\\n",b"\\n")));s=b"";'
    'exec("while len(s)<n:s+=os.read(0,n-len(s))or exit(1)");exec(compile(s,"forgectl","exec"))'
)
A = TypeVar("A")
ANSWERS = (*RELAY_TO_LAUNCHER, *RELAY_TO_SYNC)
MARK = b"forgectl-relay "
MOST_TEXT = 500
"""Most characters shown of a line that ssh or a host printed."""
NOISE = 1 << 16
"""Most bytes that a login script may print before our code does."""
OPTIONS = (
    *("-T", "-x", "-a"),
    *("-o", "BatchMode=yes", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"),
    # Settings for an interactive session would make ours fail, or tie it to that session.
    *("-o", "ClearAllForwardings=yes", "-o", "ControlPath=none", "-o", "RemoteCommand=none"),
    *("-o", "PermitLocalCommand=no", "-o", "LogLevel=ERROR"),
)


class ErrorOutput:
    """The error output of an ssh: a pipe, which holds little, so a host that prints without end only blocks itself.

    Once its reading end is closed everywhere, for example after a launch, ssh's output is lost.
    """

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        self._text = b""

    def lines(self) -> list[str]:
        """All lines so far that are not empty, from the first NOISE bytes."""
        with contextlib.suppress(BlockingIOError, ValueError):
            while self._reading >= 0 and not self.is_full and (part := os.read(self._reading, 1 << 16)):
                self._text += part
        return [line.strip() for line in self._text.decode(errors="replace").splitlines() if line.strip()]

    @property
    def is_full(self) -> bool:
        """Whether it has printed NOISE bytes: nothing more is read."""
        return len(self._text) >= NOISE

    def close_writing(self) -> None:
        """Close our copy of the writing end, which ssh has."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        """Close the pipe here."""
        self.close_writing()
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1


@dataclass
class RelayConnection:
    """A connection to the relay of a host. Its ssh is our child, or with a `pidfd` the child of another process."""

    to: Destination
    line: Connection
    process: subprocess.Popen[bytes] | None = None
    errors: ErrorOutput | None = field(default=None, repr=False)
    pidfd: int | None = None

    def ask(self, request: Any, timeout: float = ANSWER_SECONDS) -> Any:
        """Send a request; returns the answer. Raises the relay's error, or UnreachableError if the connection ends.

        `timeout` is in seconds.
        """
        answer, why = None, "the connection was lost"
        try:
            self.line.send(request)
            answer = self.line.receive(timeout)
        except TimeoutError:
            why = f"no answer in {timeout:g} s"
        except ProtocolError as e:
            raise self.out_of_step(str(e)) from None
        except OSError:
            pass  # the connection was lost
        if answer is None:
            what = self.last_error_line() or why
            raise UnreachableError(f"host {self.to.name}: {what}", hint=ssh_errors.reaches(self.to))
        if isinstance(answer, Refusal):
            message, hint = answer.message[: 4 * MOST_TEXT], answer.hint and answer.hint[: 4 * MOST_TEXT]
            raise BY_EXIT_CODE.get(answer.code, ForgeError)(message, hint=hint)
        return answer

    def ask_for(self, kind: type[A], request: Any, timeout: float = ANSWER_SECONDS) -> A:
        """Send a request; returns the answer, which must be of that kind. Raises ForgeError."""
        answer = self.ask(request, timeout)
        if not isinstance(answer, kind):
            raise self.out_of_step(f"it answered {type(request).__name__} with {type(answer).__name__}")
        return answer

    def out_of_step(self, what: str) -> UnreachableError:
        """The error for a host that sends what our relay never sends."""
        hint = "what answers there is not forgectl's relay, or is broken: look at that host"
        return UnreachableError(f"host {self.to.name} broke the protocol: {what[:MOST_TEXT]}", hint=hint)

    def last_error_line(self) -> str:
        """The last line that ssh printed as an error; "" if it is not known here."""
        lines = self.errors.lines() if self.errors is not None else []
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End the connection."""
        self.line.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
            self.pidfd = None
        if self.errors is not None:
            self.errors.close()

    def descriptors(self) -> tuple[int, int]:
        """Its socket and a pidfd of its ssh, for the process that takes it over."""
        assert self.process is not None
        self.pidfd = os.pidfd_open(self.process.pid)
        return self.line.socket.fileno(), self.pidfd

    def hand_over(self) -> None:
        """Close our copies of what another process has taken over; ssh lives on for that process."""
        self.line.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        if self.process is not None:
            let_go(self.process)
            self.process = None
        if self.errors is not None:
            self.errors.close()


_turns: dict[str, threading.BoundedSemaphore] = defaultdict(lambda: threading.BoundedSemaphore(AT_ONCE))


def dial(
    to: Destination,
    *,
    tries: int = TRIES,
    seconds: int = 10,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> RelayConnection:
    """A connection to the relay of a host. It tries again if sshd was too busy; raises ForgeError with a hint.

    `seconds` is the time for TCP and the login. `started` gets each ssh process, so that another thread can end a dial
    by killing it.
    """
    for left in range(tries - 1, -1, -1):
        with _turns[to.ssh]:
            try:
                return _dial(to, seconds, started)
            except ssh_errors.TryAgain as e:
                if not left:
                    raise e.error from None
        time.sleep(random.uniform(0.2, 1.0) * min(tries - left, LONGEST_PAUSE))
    raise AssertionError("the last try raises or returns")


def _dial(to: Destination, seconds: int, started: Callable[[subprocess.Popen[bytes]], None]) -> RelayConnection:
    ours, theirs = socket.socketpair()
    errors = ErrorOutput()
    try:
        with theirs:
            process = subprocess.Popen(
                [*program(), *OPTIONS, "-o", f"ConnectTimeout={seconds}", "--", to.ssh, COMMAND],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=errors.writing,
                start_new_session=True,  # only the launcher handles Ctrl-C
            )
    except OSError as e:
        ours.close()
        errors.close()
        message = f"host {to.name}: cannot run {program()[0]!r}: {e.strerror}"
        raise UnreachableError(message, hint="install an ssh client, or set FORGECTL_SSH") from None
    errors.close_writing()
    dialled = RelayConnection(to, Connection(ours, ANSWERS), process, errors)
    started(process)
    try:
        _greet(dialled)
    except BaseException:
        dialled.close()
        raise
    return dialled


def _greet(dialled: RelayConnection) -> None:
    """Start the relay at the other end; raises ForgeError or TryAgain."""
    line, deadline = dialled.line, time.monotonic() + DIAL_SECONDS
    first, shipped = stage(), bundle()
    head = f"{dialled.to.python}\n{LOADER}\n{len(first)}\n".encode()
    settings = f"{shipped.digest}\n{dialled.to.root}\n".encode()
    noise: list[str] = []
    try:
        with contextlib.suppress(ConnectionError):  # reading will show why
            line.send_bytes(head + first + settings)
        reply = _stage_reply(line, deadline, noise)
        if reply.have is None:
            raise ssh_errors.unfit(dialled.to, reply)
        if not reply.have:
            line.send_bytes(b"%d\n" % len(shipped.data) + shipped.data)
        ready = _ready(line, deadline)
        if isinstance(ready, StageReply):
            raise ssh_errors.unfit(dialled.to, ready)
    except (TimeoutError, ConnectionError, ProtocolError, EOFError):
        raise _why_not(dialled, noise) from None


def _stage_reply(line: Connection, deadline: float, noise: list[str]) -> StageReply:
    """The next reply of the stage, after what login scripts print; raises EOFError, TimeoutError."""
    left = NOISE
    while left > 0:
        text = _line_by(line, deadline)
        if (found := _marked(text)) is not None:
            return found
        left -= len(text) + 1
        if text:
            noise.append(text.decode(errors="replace")[:MOST_TEXT])
    raise EOFError


def _line_by(line: Connection, deadline: float) -> bytes:
    """The next line; raises EOFError, and TimeoutError after `deadline`, even if lines keep coming."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    text = line.receive_line(left)
    if text is None:
        raise EOFError
    return text


def _marked(text: bytes) -> StageReply | None:
    """A reply of the stage; None for any other line."""
    if text.startswith(MARK):
        with contextlib.suppress(ValueError, RecursionError):
            return from_json(StageReply, json.loads(text[len(MARK) :]))
    return None


def _ready(line: Connection, deadline: float) -> RelayReady | StageReply:
    """The relay's first message, or why the stage could not become the relay."""
    while not (text := _line_by(line, deadline)):
        pass
    if (more := _marked(text)) is not None:
        return more
    ready = decode(text, (RelayReady,))
    assert isinstance(ready, RelayReady)
    return ready


def _why_not(dialled: RelayConnection, noise: list[str]) -> Exception:
    """The error for a dial that failed, from what ssh and the other end printed."""
    assert dialled.process is not None
    dialled.line.close()
    try:
        code: int | None = dialled.process.wait(1.0)
    except subprocess.TimeoutExpired:
        code = None
    assert dialled.errors is not None
    lines = dialled.errors.lines()
    if code is None and dialled.errors.is_full:
        lines = [f"it printed more than {NOISE >> 10} KiB of errors", *lines[-1:]]
    return ssh_errors.explain(dialled.to, code, [line[:MOST_TEXT] for line in lines], noise)
