"""Every error that a user can meet: what, where, why, and what to do; each has its exit code.

Raised once, rendered once, at the edge (`cli/`). Exit codes follow sysexits.h where it has a fitting one.
"""

from __future__ import annotations

from collections.abc import Sequence

from forgectl.frozen import dataclass


class ForgeError(Exception):
    """An error whose message is meant for the user.

    `message` says what went wrong, where and why; `hint` says what to do about it.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ForgeError):
    """The command line asks for something that is not possible."""

    exit_code = 64


@dataclass(frozen=True)
class SpecProblem:
    """One thing wrong with a spec. `line` and `column` count from 1; 0 means the whole file."""

    where: str  # dotted path of the value, such as "actors.trainer.procs"; "" for the whole file
    message: str
    line: int = 0
    column: int = 0

    def render(self, source: str) -> str:
        """One line: `spec.yaml:14:11: actors.trainer.proc: unknown key; did you mean 'procs'?`."""
        place = f"{source}:{self.line}:{self.column}" if self.line else source
        return f"{place}: {self.where}: {self.message}" if self.where else f"{place}: {self.message}"


class SpecError(ForgeError):
    """A spec that cannot be run: all its problems, each on a line of its own."""

    exit_code = 65

    def __init__(self, source: str, problems: Sequence[SpecProblem], *, hint: str | None = None) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(p.render(source) for p in self.problems), hint=hint)


class NotFoundError(ForgeError):
    """No such file, run or mesh."""

    exit_code = 66


class UnreachableError(ForgeError):
    """A host, or the agent on it, does not answer."""

    exit_code = 69


class NotInstalledError(ForgeError, ImportError):
    """A package that only a part of forgectl needs is missing."""

    exit_code = 69


class InternalError(ForgeError):
    """A fault of forgectl itself."""

    exit_code = 70


class BusyError(ForgeError):
    """A needed resource is taken (a GPU, a name) or full (a disk): try again later."""

    exit_code = 75


class SshRefusedError(ForgeError):
    """ssh refused: an unknown host key, a rejected login."""

    exit_code = 77


class NotOursError(ForgeError, PermissionError):
    """Another user owns, or can change, what must belong to this user alone; nothing was read from it."""

    exit_code = 77


class TimedOutError(ForgeError):
    """The work was not done within its time limit."""

    exit_code = 124


class VersionError(ForgeError):
    """The other end runs another version of forgectl."""

    exit_code = 70


BY_EXIT_CODE: dict[int, type[ForgeError]] = {
    64: UsageError,
    66: NotFoundError,
    69: UnreachableError,
    70: InternalError,
    75: BusyError,
    77: SshRefusedError,
    124: TimedOutError,
}


def error_of(code: int, message: str, hint: str | None) -> ForgeError:
    """The exception for an error that arrived over a socket; `code` is its exit code."""
    error = BY_EXIT_CODE.get(code, ForgeError)(message, hint=hint)
    error.exit_code = code
    return error


class ActorDied(ForgeError):
    """A rank of an actor mesh died, so the call has no answer. A field that is not known is None, or empty.

    `rank_exit_code` and `signal` say how its process ended; `log_tail` has the last lines that it printed.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        mesh: str | None = None,
        rank: int | None = None,
        host: str | None = None,
        rank_exit_code: int | None = None,
        signal: int | None = None,
        log_tail: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.mesh = mesh
        self.rank = rank
        self.host = host
        self.rank_exit_code = rank_exit_code
        self.signal = signal
        self.log_tail = tuple(log_tail)


class MeshStopped(ForgeError):
    """A mesh of actors was ended though none of its ranks failed; `by` says by whom or what, such as "Ctrl-C"."""

    exit_code = 66

    def __init__(self, message: str, *, hint: str | None = None, by: str = "") -> None:
        super().__init__(message, hint=hint)
        self.by = by


class ServiceStopped(ForgeError):
    """The service was shut down before the request was done."""

    exit_code = 66


class ServiceUnavailable(ForgeError):
    """No replica of the service is healthy."""

    exit_code = 75


class ServiceOverloaded(ForgeError):
    """The service's queue is full: `max_queue` requests are waiting."""

    exit_code = 75
