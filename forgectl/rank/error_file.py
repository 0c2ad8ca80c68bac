"""How a rank reports why it failed: an error file in the format of torch.distributed.elastic."""

from __future__ import annotations

import importlib
import json
import os
import time
import traceback
from pathlib import Path
from types import TracebackType

from forgectl.redaction import of_process
from forgectl.system.files import create

MAX_TEXT = 32 * 1024
_OURS = (f"{Path(__file__).parents[1]}{os.sep}", "<frozen importlib", importlib.__file__)


def write_error_file(path: str, error: BaseException) -> None:
    """Write `error` with its traceback to `path`, unless the file exists: torch's own `@record` may be first.

    The format is that of `torch.distributed.elastic.multiprocessing.errors.ErrorHandler`.
    """
    document = {
        "message": {
            "message": describe(error),
            "extraInfo": {
                "py_callstack": format_traceback(error),
                "timestamp": str(int(time.time())),
            },
        },
    }
    try:
        with open(create(path), "w") as file:
            json.dump(document, file)
    except OSError:
        pass  # it exists, or the disk is full: the exit code and the log still show the failure


def describe(error: BaseException) -> str:
    """The error as in the last line of a traceback, for example `ValueError: bad value`."""
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return of_process()(text)[:MAX_TEXT]  # redact first: half a secret would not be recognised


def format_traceback(error: BaseException) -> str:
    """The traceback of `error`. A long one is cut to its end, which names the cause."""
    text = of_process()("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    return text if len(text) <= MAX_TEXT else "[…]\n" + text[-MAX_TEXT:]


def without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither in this package nor in Python's import system."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace
