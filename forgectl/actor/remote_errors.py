"""Sends an exception of an endpoint to its caller: the exception itself if it can be pickled, and its text."""

from __future__ import annotations

import concurrent.futures.thread
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from forgectl.messages import pickling

_OURS = ("actor_rank.py", "performer.py", "rank_streams.py", "outflow.py")
_OUR_FILES = {str(Path(__file__).with_name(name)) for name in _OURS}
_SERVING = str(Path(pickling.__file__).with_name("serving.py"))
_HIDDEN_FILES = {_SERVING, *_OUR_FILES, concurrent.futures.thread.__file__}


class RemoteError(Exception):
    """Carries an exception out of a rank. `pickled` is empty if the exception cannot be pickled."""

    def __init__(self, pickled: list[Any], line: str, text: str) -> None:
        super().__init__(pickled, line, text)
        self.pickled = pickled
        self.line = line
        self.text = text


def carrier(error: BaseException) -> RemoteError:
    """A RemoteError for `error`; any process can unpickle it."""
    line = "".join(traceback.format_exception_only(type(error), error)).strip()
    try:
        pickled = pickling.nested(error)
    except Exception:
        pickled = []
    return RemoteError(pickled, line, user_traceback(error))


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` as text, without the frames above the user's code."""
    return "".join(traceback.format_exception(type(error), error, _without_ours(error.__traceback__)))


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename in _HIDDEN_FILES:
        trace = trace.tb_next
    return trace


class RemoteTraceback(Exception):
    """The traceback from the rank, as text. It is the cause of the exception that the caller gets."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def original(raised: RemoteError) -> tuple[Exception, RemoteTraceback]:
    """The exception that was carried, and its cause. A RuntimeError if the exception cannot be unpickled here."""
    try:
        found = pickling.loads(raised.pickled)
        if not isinstance(found, Exception) or isinstance(found, StopIteration):  # a coroutine must not raise it
            raise TypeError
    except Exception:
        found = RuntimeError(raised.line)
    return found, RemoteTraceback(raised.text)
