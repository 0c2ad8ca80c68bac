"""Turns what ssh printed into errors with hints. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from forgectl.errors import ForgeError, SshRefusedError, UnreachableError
from forgectl.frozen import dataclass
from forgectl.transport.destination import Destination

REFUSED = 255
NOT_FOUND = 127
NOT_EXECUTABLE = 126
BUSY = ("kex_exchange_identification", "Connection closed by", "Connection reset by", "banner exchange")
"""What ssh prints if sshd had too many logins under way, or lost one."""


@dataclass(frozen=True)
class StageReply:
    """A reply of our first program on a host (relay/unpack.py): whether our code is there, or what is wrong."""

    have: bool | None = None
    wrong: str = ""  # old, psutil, root
    python: str = ""
    version: tuple[int, ...] = ()
    why: str = ""
    cure: str = ""


class TryAgain(Exception):
    """A dial that may succeed the next time; `error` is what to raise if it does not."""

    def __init__(self, error: ForgeError) -> None:
        super().__init__(str(error))
        self.error = error


def explain(to: Destination, code: int | None, errors: Sequence[str], noise: Sequence[str]) -> Exception:
    """The error for a dial that failed, from ssh's exit code (None while it runs) and lines of output.

    `errors` are lines that ssh printed as errors, `noise` lines that the host printed.
    """
    words = "; ".join(errors[-3:])
    where = f"host {to.name}"
    if any("Host key verification failed" in line or "HOST IDENTIFICATION HAS CHANGED" in line for line in errors):
        if any("CHANGED" in line for line in errors):
            why = "its key is not the one that was known"
            hint = f"find out why; then `ssh-keygen -R` its name and {_once(to)}"
        else:
            why, hint = "its key is not known", f"{_once(to)}, compare the key and accept it"
        return SshRefusedError(f"{where}: ssh refused: {why}: {_first(errors, 'verification')}", hint=hint)
    if code in (NOT_FOUND, NOT_EXECUTABLE):
        why = "no such python" if code == NOT_FOUND else "cannot run its python"
        hint = f"set `python:` of host {to.name} to an interpreter there, 3.10 or newer"
        return UnreachableError(f"{where}: {why}: {to.python}" + (f" ({words})" if words else ""), hint=hint)
    if any("Permission denied" in line or "Too many authentication failures" in line for line in errors):
        hint = f"`{to.command} -o BatchMode=yes {_name(to)} true` must work, by a key or an agent, without a password"
        return SshRefusedError(f"{where}: ssh refused: {_first(errors, 'denied', 'authentication')}", hint=hint)
    if code is None:
        message = f"{where}: ssh {to.ssh} got no answer in time" + (f": {words}" if words else "")
        return UnreachableError(message, hint=reaches(to))
    if code == REFUSED:
        message = f"{where}: ssh cannot reach {to.ssh}: {words}" if words else f"{where}: the connection was lost"
        error = UnreachableError(message, hint=reaches(to))
        busy = any(b in line and "timed out" not in line for line in errors for b in BUSY)
        return TryAgain(error) if busy else error
    words = words or " / ".join(noise[-3:]) or f"exit code {code}"
    message = f"{where}: forgectl's relay could not start there: {words}"
    return UnreachableError(
        message, hint=f"see what `{to.command} {_name(to)} {shlex.quote(to.python)} -c pass` prints"
    )


def unfit(to: Destination, reply: StageReply) -> ForgeError:
    """The error for a host whose stage ran and reported what prevents the relay."""
    python, version = reply.python or to.python, ".".join(map(str, reply.version))
    where = f"host {to.name}"
    if reply.wrong == "old":
        hint = f"set `python:` of host {to.name} to a newer one"
        return UnreachableError(f"{where}: {python} is Python {version}; forgectl needs 3.10 or newer", hint=hint)
    if reply.wrong == "psutil":
        return UnreachableError(
            f"{where}: {python} lacks psutil",
            hint=f"{to.command} {_name(to)} {shlex.quote(python)} -m pip install psutil (or name another `python:`)",
        )
    message = f"{where}: cannot keep files there: {reply.why or 'it does not say why'}"
    return UnreachableError(message, hint=reply.cure or "forgectl keeps them in /var/tmp")


def _first(lines: Sequence[str], *needles: str) -> str:
    return next((line for line in lines if any(n in line for n in needles)), lines[-1] if lines else "")


def _once(to: Destination) -> str:
    return f"run `{to.command} {_name(to)}` once by hand"


def _name(to: Destination) -> str:
    """The host's name for ssh, quoted for a shell."""
    return shlex.quote(to.ssh)


def reaches(to: Destination) -> str:
    """The hint for a host that does not answer."""
    return f"is it up, and does `{to.command} {_name(to)} true` work?"
