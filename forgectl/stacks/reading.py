"""Reads stacks from what a rank, faulthandler or py-spy wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from forgectl.stacks.evidence import Frame, Group, ThreadStack

MOST_FRAMES = 100
MOST_TEXT = 300
"""Characters of a file's or function's name."""
_THREAD = re.compile(r"(?:Current thread|Thread) (0x[0-9a-f]+)(?: \[(.*)\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_BELOW = ("<frozen runpy>", "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_LAST = '/boot.py", line '


def of_rank(document: Any, workdir: str, ours: str) -> tuple[tuple[ThreadStack, ...], tuple[Group, ...]]:
    """What rank/stacks.py answers. Raises ValueError, TypeError or KeyError for anything else.

    `ours` is the folder of this package on the rank's host: its frames below the user's are left out.
    """
    threads = [
        ThreadStack(str(name)[:MOST_TEXT], _frames(((f, n, c) for f, n, c in frames), workdir, ours), bool(task))
        for name, task, frames in document["threads"]
    ]
    groups = [
        Group(str(name)[:MOST_TEXT], str(description)[:MOST_TEXT], tuple(int(r) for r in ranks))
        for name, description, ranks in document["groups"]
    ]
    return tuple(threads), tuple(groups)


def of_faulthandler(text: str, workdir: str, ours: str) -> tuple[ThreadStack, ...]:
    """The threads of a dump of `faulthandler`, which has the main thread last."""
    threads: list[tuple[str, list[tuple[str, int, str]]]] = []
    for line in text.splitlines():
        if head := _THREAD.match(line):
            threads.append((head[2] or f"thread {head[1]}", []))
        elif threads and (found := _FRAME.match(line)):
            threads[-1][1].append((found[1], int(found[2]), found[3]))
    if threads:
        threads[-1] = ("MainThread", threads[-1][1])
    return tuple(ThreadStack(name, _frames(frames, workdir, ours)) for name, frames in reversed(threads) if frames)


def is_whole(text: str) -> bool:
    """Whether a dump has come to its end: the outermost call of the main thread, which is in boot.py."""
    last = text.rpartition("\n")[0].rpartition("\n")[2]
    return text.endswith("\n") and (_LAST in last or last == "  ...")


def of_py_spy(document: Any, pid: int, workdir: str, ours: str) -> tuple[ThreadStack, ...]:
    """The threads of `py-spy dump --json`. Raises ValueError, TypeError or KeyError for anything else."""
    threads = sorted(document, key=lambda t: t.get("os_thread_id") != pid)
    return tuple(
        ThreadStack(
            str(t.get("thread_name") or f"thread {t['thread_id']}")[:MOST_TEXT],
            _frames(((f["filename"], f["line"] or 0, f["name"]) for f in t["frames"]), workdir, ours),
        )
        for t in threads
    )


def _frames(found: Iterable[tuple[Any, Any, Any]], workdir: str, ours: str) -> tuple[Frame, ...]:
    frames = [
        Frame(str(file)[:MOST_TEXT].removeprefix(f"{workdir}/"), int(line or 0), str(function)[:MOST_TEXT])
        for file, line, function in found
    ][:MOST_FRAMES]
    while frames and (frames[-1].file.startswith(ours) or frames[-1].file in _BELOW):
        frames.pop()
    return tuple(frames)
