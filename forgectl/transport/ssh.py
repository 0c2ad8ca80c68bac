"""Dials a host with the user's own ssh, and has our code run there: one constant command, everything else on stdin."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from forgectl.codec import from_json
from forgectl.errors import BY_EXIT_CODE, ForgeError, UnreachableError, UsageError
from forgectl.protocol import RELAY_TO_LAUNCHER, RELAY_TO_SYNC, ProtocolError, Refusal, RelayReady, decode
from forgectl.transport import ssh_errors
from forgectl.transport.bundle import bundle, stage
from forgectl.transport.ssh_errors import StageWord
from forgectl.wire import Line

DIAL_SECONDS = 30.0
"""From the start of ssh to the relay's first word: with the shipping of our code over a slow link."""
ANSWER_SECONDS = 60.0
AT_ONCE = 8
"""Dials to one destination at a time: by default sshd drops some of more than ten that have not logged in yet."""
TRIES = 4

COMMAND = (
    'exec sh -c \'IFS= read -r p && IFS= read -r c && case $p in "~/"*) p=$HOME/${p#??};; esac && exec "$p" -c "$c"\''
)
"""What the remote shell, whichever it is, gets to parse. It reads the interpreter and its first line of code."""
LOADER = (
    'import os;n=int(b"".join(iter(lambda:os.read(0,1)or b"\\n",b"\\n")));s=b"";'
    'exec("while len(s)<n:s+=os.read(0,n-len(s))or exit(1)");exec(compile(s,"forgectl","exec"))'
)
ANSWERS = (*RELAY_TO_LAUNCHER, *RELAY_TO_SYNC)
MARK = b"forgectl-relay "
NOISE = 1 << 16
"""Bytes that a login script may print before we are heard."""
OPTIONS = (
    *("-T", "-x", "-a"),
    *("-o", "BatchMode=yes", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"),
    # What an interactive session may want would fail, or share its fate with, ours.
    *("-o", "ClearAllForwardings=yes", "-o", "ControlPath=none", "-o", "RemoteCommand=none"),
    *("-o", "PermitLocalCommand=no", "-o", "LogLevel=ERROR"),
)


@dataclass(frozen=True)
class Destination:
    """An ssh host of a run: its name, what ssh is told, the interpreter there, and our folder ("": it finds one)."""

    name: str
    ssh: str
    python: str
    root: str = ""

    @property
    def command(self) -> str:
        """The ssh program, as the user would type it."""
        return shlex.join(program())


@dataclass
class Dialled:
    """A connection to the relay of a host, by an ssh that is our child or, with a `pidfd`, another process's."""

    to: Destination
    line: Line
    process: subprocess.Popen[bytes] | None = None
    said: IO[bytes] | None = field(default=None, repr=False)
    pidfd: int | None = None

    def ask(self, request: Any, timeout: float = ANSWER_SECONDS) -> Any:
        """Send a request; its answer. Raises what the relay refuses with, UnreachableError at the connection's end."""
        answer, why = None, "the connection was lost"
        try:
            self.line.send(request)
            answer = self.line.receive(timeout)
        except TimeoutError:
            why = f"no answer in {timeout:g} s"
        except ProtocolError as e:
            why = str(e)
        except OSError:
            pass  # so it was
        if answer is None:
            raise UnreachableError(f"host {self.to.name}: {self.last_words() or why}", hint=ssh_errors.reaches(self.to))
        if isinstance(answer, Refusal):
            raise BY_EXIT_CODE.get(answer.code, ForgeError)(answer.message, hint=answer.hint)
        return answer

    def last_words(self) -> str:
        """What ssh printed, as far as it is known here."""
        if self.said is None:
            return ""
        self.said.seek(0)
        lines = self.said.read(NOISE).decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

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
        if self.said is not None:
            self.said.close()

    def descriptors(self) -> tuple[int, int]:
        """Its socket and a pidfd of its ssh, for a process that is to have it from now on."""
        assert self.process is not None
        self.pidfd = os.pidfd_open(self.process.pid)
        return self.line.socket.fileno(), self.pidfd

    def hand_on(self) -> None:
        """Close our copies of what another process has: ssh lives on for that."""
        self.line.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        if self.process is not None:
            self.process.returncode = 0  # not ours to wait for
            self.process = None
        if self.said is not None:
            self.said.close()


_turns: dict[str, threading.BoundedSemaphore] = defaultdict(lambda: threading.BoundedSemaphore(AT_ONCE))


def program() -> list[str]:
    """The user's ssh: FORGECTL_SSH with its options, else `ssh`. Raises UsageError where it cannot be read."""
    given = os.environ.get("FORGECTL_SSH", "").strip()
    try:
        return shlex.split(given) or ["ssh"]
    except ValueError as e:
        raise UsageError(f"FORGECTL_SSH={given!r} is no command: {e}") from None


def dial(
    to: Destination,
    *,
    tries: int = TRIES,
    seconds: int = 10,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> Dialled:
    """A connection to the relay of a host, tried again where sshd was too busy; raises ForgeError with what to do.

    `seconds` is what TCP and the login may take. `started` is told of each ssh, so that another thread can end a dial
    by killing it.
    """
    for left in range(tries - 1, -1, -1):
        with _turns[to.ssh]:
            try:
                return _dial(to, seconds, started)
            except ssh_errors.TryAgain as e:
                if not left:
                    raise e.error from None
        time.sleep(random.uniform(0.2, 1.0) * (tries - left))
    raise AssertionError("the last try raises or returns")


def _dial(to: Destination, seconds: int, started: Callable[[subprocess.Popen[bytes]], None]) -> Dialled:
    ours, theirs = socket.socketpair()
    said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the connection)
    try:
        with theirs:
            process = subprocess.Popen(
                [*program(), *OPTIONS, "-o", f"ConnectTimeout={seconds}", "--", to.ssh, COMMAND],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=said,
                start_new_session=True,  # Ctrl-C is the launcher's to answer
            )
    except OSError as e:
        ours.close()
        said.close()
        message = f"host {to.name}: cannot run {program()[0]!r}: {e.strerror}"
        raise UnreachableError(message, hint="install an ssh client, or set FORGECTL_SSH") from None
    dialled = Dialled(to, Line(ours, ANSWERS), process, said)
    started(process)
    try:
        _greet(dialled)
    except BaseException:
        dialled.close()
        raise
    return dialled


def _greet(dialled: Dialled) -> None:
    """Have the relay run at the other end."""
    line, deadline = dialled.line, time.monotonic() + DIAL_SECONDS
    first, shipped = stage(), bundle()
    head = f"{dialled.to.python}\n{LOADER}\n{len(first)}\n".encode()
    told = f"{shipped.digest}\n{dialled.to.root}\n".encode()
    noise: list[str] = []
    try:
        with contextlib.suppress(ConnectionError):  # reading tells why
            line.send_bytes(head + first + told)
        word = _word(line, deadline, noise)
        if word.have is None:
            raise ssh_errors.unfit(dialled.to, word)
        if not word.have:
            line.send_bytes(b"%d\n" % len(shipped.data) + shipped.data)
        ready = _ready(line, deadline)
        if isinstance(ready, StageWord):
            raise ssh_errors.unfit(dialled.to, ready)
    except (TimeoutError, ConnectionError, ProtocolError, EOFError):
        raise _why_not(dialled, noise) from None


def _word(line: Line, deadline: float, noise: list[str]) -> StageWord:
    """The next word of the stage, after what login scripts print; raises EOFError, TimeoutError."""
    while sum(map(len, noise)) < NOISE:
        text = line.receive_line(max(0.01, deadline - time.monotonic()))
        if text is None:
            raise EOFError
        if (found := _marked(text)) is not None:
            return found
        if text:
            noise.append(text.decode(errors="replace"))
    raise EOFError


def _marked(text: bytes) -> StageWord | None:
    """A word of the stage; None for anything else."""
    if text.startswith(MARK):
        with contextlib.suppress(ValueError, RecursionError):
            return from_json(StageWord, json.loads(text[len(MARK) :]))
    return None


def _ready(line: Line, deadline: float) -> RelayReady | StageWord:
    """The relay's first message, or why the stage could not become the relay."""
    text: bytes | None = b""
    while text == b"":
        text = line.receive_line(max(0.01, deadline - time.monotonic()))
    if text is None:
        raise EOFError
    if (more := _marked(text)) is not None:
        return more
    ready = decode(text, (RelayReady,))
    assert isinstance(ready, RelayReady)
    return ready


def _why_not(dialled: Dialled, noise: list[str]) -> Exception:
    """What ssh, or the other end, had to say."""
    assert dialled.process is not None
    dialled.line.close()
    try:
        code: int | None = dialled.process.wait(1.0)
    except subprocess.TimeoutExpired:
        code = None
    assert dialled.said is not None
    dialled.said.seek(0)
    said = dialled.said.read(NOISE).decode(errors="replace").strip().splitlines()
    return ssh_errors.explain(dialled.to, code, [line.strip() for line in said if line.strip()], noise)
