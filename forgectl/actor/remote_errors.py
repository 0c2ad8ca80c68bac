"""What an endpoint raises, on its way to the caller: the exception itself where it can be had there, and words."""

from __future__ import annotations

import concurrent.futures.thread
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from forgectl.messages import pickling

_OURS = {str(Path(__file__).with_name(name)) for name in ("actor_rank.py", "performer.py")}
_BELOW = {*_OURS, concurrent.futures.thread.__file__}


class RemoteError(Exception):
    """Carries an exception out of a rank. `pickled` is empty where that cannot be."""

    def __init__(self, pickled: list[Any], line: str, text: str) -> None:
        super().__init__(pickled, line, text)
        self.pickled = pickled
        self.line = line
        self.text = text


def carrier(error: BaseException) -> RemoteError:
    """An exception that any process can unpickle, whatever `error` is."""
    line = "".join(traceback.format_exception_only(type(error), error)).strip()
    try:
        pickled = pickling.nested(error)
    except Exception:
        pickled = []
    return RemoteError(pickled, line, shown(error))


def shown(error: BaseException) -> str:
    """The traceback of `error` from the user's code on."""
    return "".join(traceback.format_exception(type(error), error, _without_ours(error.__traceback__)))


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename in _BELOW:
        trace = trace.tb_next
    return trace


class RemoteTraceback(Exception):
    """Where in a rank an endpoint raised, as text. The cause of the exception that its caller gets."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def original(raised: RemoteError) -> tuple[Exception, RemoteTraceback]:
    """The exception that was carried, or a RuntimeError where it cannot be had here, and its cause."""
    try:
        found = pickling.loads(raised.pickled)
        if not isinstance(found, Exception) or isinstance(found, StopIteration):  # no coroutine may raise that
            raise TypeError
    except Exception:
        found = RuntimeError(raised.line)
    return found, RemoteTraceback(raised.text)
