"""Reads logs of this host for the launching machine, part by part, to be sent over the control connection."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from pathlib import Path

from forgectl.names import NAME
from forgectl.protocol.supervision import LogAt, LogPart, LogParts, ReadLogs
from forgectl.system.files import open_to_read
from forgectl.system.log_cap import next_data
from forgectl.system.log_times import SAMPLE, LogTimes
from forgectl.wire.envelope import ProtocolError

ANSWER_BYTES = 1 << 20
"""Bytes of all parts of an answer. In base64 they fit one message, and commands wait only briefly behind it."""
ANSWER_SAMPLES = 16 * 1024
"""Samples of times of all parts of an answer: 350 KB in base64."""
LOOK_SECONDS = 0.05


async def read_logs(logs: Path, request: ReadLogs) -> LogParts:
    """What is new in each log; if nothing is, wait for it for at most `request.wait` seconds, and at most a minute.

    Raises ProtocolError for a mesh name that is none: it would become part of a path.
    """
    deadline = time.monotonic() + min(request.wait, 60.0)
    while True:
        parts = _parts(logs, request.logs)
        if any(part.data for part in parts) or time.monotonic() >= deadline:
            return LogParts(parts, time.time())
        await asyncio.sleep(LOOK_SECONDS)


def _parts(logs: Path, wanted: tuple[LogAt, ...]) -> tuple[LogPart, ...]:
    share = max(ANSWER_BYTES // max(1, len(wanted)), 4096)
    samples = max(ANSWER_SAMPLES // max(1, len(wanted)), 64)
    parts: list[LogPart] = []
    left = ANSWER_BYTES
    for at in wanted:
        if left <= 0:
            break
        part = _part(logs, at, min(share, left), samples)
        left -= len(part.data)
        parts.append(part)
    return tuple(parts)


def _part(logs: Path, at: LogAt, most: int, samples: int) -> LogPart:
    """At most `most` bytes from `at.offset`, or from the end of a hole there (bytes that the log cap dropped).

    They are fewer if more than `samples` tell their times: none of these may be left out.
    """
    if not NAME.fullmatch(at.mesh):
        raise ProtocolError(f"{at.mesh[:80]!r} is not the name of a mesh")  # it becomes part of a path
    path = logs / at.mesh / str(at.generation) / f"rank-{at.rank}.log"
    with contextlib.suppress(OSError):
        fd = open_to_read(path)
        try:
            size = os.fstat(fd).st_size
            offset = next_data(fd, at.offset, size) if at.offset < size else at.offset
            end = min(offset + most, max(offset, size))
            times = LogTimes(path).packed(at.offset, end, samples)
            if len(times) == samples * SAMPLE.size:
                end = max(offset, SAMPLE.unpack_from(times, len(times) - SAMPLE.size)[0])
            data = os.pread(fd, end - offset, offset)
            return LogPart(at, offset, _text(data), size, _text(times))
        finally:
            os.close(fd)
    return LogPart(at, at.offset, "", 0)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
