"""The report of a rank's end: exit code or signal, its own error file, its last log lines."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from forgectl.agent import rank_logs
from forgectl.protocol.supervision import RankExited
from forgectl.system.files import open_to_read

MAX_ERROR_FILE = 1 << 20
TAIL_LINES = 20
UNNOTICED = 0.05
"""Seconds by which we may notice an end late. Exceptions that it caused in other ranks are dated exactly."""


def exit_report(
    mesh: str,
    generation: int,
    rank: int,
    *,
    status: int,
    exited_at: float,
    asked: bool,
    oom: str | None,
    log: Path,
    error_file: Path,
) -> RankExited:
    """The report of one rank's end; reads its error file and log only if it did not exit with 0.

    `status` is a wait status, `exited_at` is unix time, `oom` the evidence that the kernel killed it for memory.
    """
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return RankExited(mesh, generation, rank, 0, None, asked)
    message, trace, failed_at = read_error_file(error_file)
    failed_at = exited_at - UNNOTICED if failed_at is None else failed_at
    return RankExited(
        mesh,
        generation,
        rank,
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        asked=asked,
        oom=oom,
        error=message,
        traceback=trace,
        log_tail=tuple(rank_logs.tail(log, TAIL_LINES)),
        failed_ago=max(0.0, time.time() - failed_at),
    )


def read_error_file(path: Path) -> tuple[str | None, str | None, float | None]:
    """Message, traceback and unix time of a torch.distributed.elastic error file; Nones if there is none.

    The rank writes the file, so it may have any form and length.
    """
    try:
        with open(open_to_read(path), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                return None, None, None
            document = json.loads(file.read(MAX_ERROR_FILE))
    except (OSError, ValueError, RecursionError):
        return None, None, None
    inner = _dict(document).get("message")
    if isinstance(inner, str):  # the older, flat form
        return inner, None, info.st_mtime
    extra = _dict(_dict(inner).get("extraInfo"))
    message = _dict(inner).get("message")
    trace = extra.get("py_callstack")
    return (
        str(message) if message else None,
        str(trace) if trace else None,
        info.st_mtime,  # finer than the timestamp in the file, which has whole seconds
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
