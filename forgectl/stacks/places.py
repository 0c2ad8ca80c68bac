"""Where ranks are, in a few words: the user's own line first, and ranks at the same place together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from forgectl.stacks.evidence import Frame, RankEvidence, ThreadStack

_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3[\d.]*/")
_OURS = re.compile(r"/forgectl/(?:boot\.py$|(?:rank|actor|agent|messages|wire|system)/)")
_ACTORS = re.compile(r"/forgectl/(?:actor|messages)/")
_WRAPPERS = frozenset({"wrapper", "inner", "_fn", "decorate_context", "_wrapped_call_impl", "_call_impl", "__call__"})
"""Functions that only call the one that was meant."""
MOST_PARTS = 3
"""Folders and file of a path that are shown where it is not in the workdir."""


def where(rank: RankEvidence) -> str:
    """`at data.py:41 (read)`, or `at all_reduce (train.py:88)` in a library's function that line 88 called."""
    if rank.view != "seen":
        return rank.detail or rank.view
    with_user = [t for t in rank.threads if _user_index(t.frames) is not None]
    main = rank.threads[:1]
    thread = (main[0] if main and main[0] in with_user else None) or _first(with_user, task=True) or _first(with_user)
    if thread is None:
        if any(_ACTORS.search(f.file) for t in main for f in t.frames):
            return "idle: it serves no call"
        return f"at {_call(main[0].frames[0])}" if main and main[0].frames else "in no Python code"
    place = place_of(thread.frames)
    if thread.task:
        return f"awaits {place}"
    return f"at {place}" if thread in main else f"at {place}, in {thread.name}"


def place_of(frames: Sequence[Frame]) -> str:
    """The user's innermost line, and what it is in: its own function, or a library's that it called."""
    index = _user_index(frames)
    if index is None:
        return _call(frames[0]) if frames else ""
    user = frames[index]
    line = f"{short(user.file)}:{user.line}"
    name = callee(frames)
    if not name:
        return line if user.function == "<module>" else f"{line} ({user.function})"
    return f"{name} ({line})"


def callee(frames: Sequence[Frame]) -> str:
    """The library's function that the user's innermost line has called; "" if it is in none, or waits in ours."""
    above = [f for f in frames[: _user_index(frames)] if not _OURS.search(f.file)]
    called = next((f for f in reversed(above) if f.function not in _WRAPPERS and f.line), None)
    if called is None:
        return above[-1].function if above else ""
    inside = called.function.startswith("__")  # of a class: the name alone says little
    return f"{short(called.file).rpartition('/')[2].partition('.')[0]}.{called.function}" if inside else called.function


def main_stack(rank: RankEvidence) -> tuple[Frame, ...]:
    """The calls of its main thread."""
    return rank.threads[0].frames if rank.threads else ()


def fold(ranks: Iterable[RankEvidence]) -> list[tuple[tuple[int, ...], str]]:
    """Ranks, and where these are, for each place."""
    found: dict[str, list[int]] = {}
    for rank in sorted(ranks, key=lambda r: r.rank):
        found.setdefault(where(rank), []).append(rank.rank)
    return [(tuple(numbers), text) for text, numbers in found.items()]


def short(file: str) -> str:
    """A path as it is shown: whole if it is in the workdir, else its end."""
    return file if not file.startswith("/") else "/".join(file.split("/")[-MOST_PARTS:])


def _first(threads: Iterable[ThreadStack], *, task: bool | None = None) -> ThreadStack | None:
    return next((t for t in threads if task is None or t.task == task), None)


def _call(frame: Frame) -> str:
    return f"{frame.function} ({short(frame.file)}:{frame.line})"


def _user_index(frames: Sequence[Frame]) -> int | None:
    return next((i for i, f in enumerate(frames) if is_users(f.file)), None)


def is_users(file: str) -> bool:
    """Whether a file is the user's own, neither a library's nor ours."""
    return file.endswith(".py") and not _LIBRARY.search(file) and not _OURS.search(file)
