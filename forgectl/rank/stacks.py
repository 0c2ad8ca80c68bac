"""Lets the agent see where this rank is: its stacks, its process groups and the collectives that torch recorded.

A thread answers on a Unix socket in a private folder. It is blocked in accept() until the agent asks, and needs the GIL
to answer. So a signal, too, has `faulthandler` write the stacks to a file: that works even where C code holds the GIL.

torch has a server for this (`_WorkerServer`). But it starts nine threads, writes to the log, must be started with torch
loaded, and a Python handler in it may abort the process at its end (torch 2.13).
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from forgectl.rank import progress
from forgectl.stacks import JOINING
from forgectl.system.files import create
from forgectl.wire.unix_sockets import listen, peer_uid

SIGNAL = signal.SIGRTMIN + 7
STACKS, PROGRESS = b"s", b"p"
"""What the agent asks for."""
RECORDERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
"""torch's functions that dump the recorders of gloo and of NCCL, where they exist."""
MOST_FRAMES = 100
MOST_TASKS = 50


def show(place: str) -> None:
    """Let the agent look: PLACE.txt takes the stacks after a signal, the thread listens at PLACE.sock.

    PLACE.count has the counts of `progress`.
    """
    try:
        progress.show(f"{place}.count")
        faulthandler.register(SIGNAL, create(f"{place}.txt", append=True))
        path = Path(f"{place}.sock")
        listener = listen(path)
    except (OSError, RuntimeError):  # a full disk: the rank runs all the same
        return
    os.register_at_fork(after_in_child=listener.close)
    atexit.register(_leave, path, os.getpid())
    _thread.start_new_thread(_serve, (listener,))  # not threading: programs count its threads


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # out of descriptors, or closed by the program
            return
        with contextlib.suppress(Exception), connection:
            connection.settimeout(1.0)
            if peer_uid(connection) == os.getuid():
                connection.sendall(_progress() if connection.recv(1) == PROGRESS else _answer())


def _leave(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


def _answer() -> bytes:
    """A line of JSON, then what the recorders wrote, whose lengths are in it."""
    recorded = list(_recorded())
    found = {"threads": [*_threads(), *_tasks()], "groups": _groups(), "recorded": [len(r) for r in recorded]}
    return b"".join([json.dumps(found).encode(), b"\n", *recorded])


def _progress() -> bytes:
    """A line of JSON: how many collectives this rank has entered, and whether it waits for others to join a group."""
    world, entered = _world(), 0
    for group in list(world.pg_names) if world is not None else ():
        with contextlib.suppress(Exception):  # not every backend counts
            entered += group._get_sequence_number_for_group()
    return json.dumps({"entered": entered, "joining": any(_joins(f) for f in sys._current_frames().values())}).encode()


def _joins(frame: FrameType | None) -> bool:
    return any(function in JOINING and file.endswith("/distributed_c10d.py") for file, _, function in _calls(frame))


def _recorded() -> Iterator[bytes]:
    c10d = sys.modules.get("torch._C._distributed_c10d")
    for name in RECORDERS:
        if (dump := getattr(c10d, name, None)) is not None:
            with contextlib.suppress(Exception):  # another torch
                found = dump()
                yield found if isinstance(found, bytes) else str(found).encode()


Stack = list[tuple[str, int, str]]


def _threads() -> Iterator[tuple[str, bool, Stack]]:
    """The threads that run Python, the main thread first."""
    main = threading.main_thread().ident
    known = dict(threading._active)  # type: ignore[attr-defined]  # enumerate() would wait for a lock
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    for ident in sorted(frames, key=lambda i: i != main):
        name = known[ident].name if ident in known else f"thread {ident}"
        yield name, False, _calls(frames[ident])


def _calls(frame: FrameType | None) -> Stack:
    found: Stack = []
    while frame is not None and len(found) < MOST_FRAMES:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


def _tasks() -> Iterator[tuple[str, bool, Stack]]:
    """The asyncio tasks that wait for something, in whichever thread."""
    tasks = sys.modules.get("asyncio.tasks")
    sets = [getattr(tasks, name, None) for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks")]
    for task in [t for s in sets if s for t in _snapshot(s) if not t.done()][:MOST_TASKS]:
        coroutine = task.get_coro()
        if not getattr(coroutine, "cr_running", False) and (stack := _awaits(coroutine)):
            yield task.get_name(), True, stack


def _snapshot(tasks: Any) -> list[Any]:
    for _ in range(100):
        with contextlib.suppress(RuntimeError):  # another thread has changed the set meanwhile
            return list(tasks)
    return []


def _awaits(coroutine: Any) -> Stack:
    """Where a coroutine waits, and what it waits for by `await`: the innermost call first."""
    found: Stack = []
    while coroutine is not None and len(found) < MOST_FRAMES:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return found[::-1]


def _groups() -> list[tuple[str, str, list[int]]]:
    """Name, description and ranks of each process group that this rank is in."""
    world = _world()
    if world is None:
        return []
    found = []
    for group, ranks in list(world.pg_group_ranks.items()):
        name = world.pg_names.get(group)
        if name is not None:
            description = str(getattr(group, "group_desc", ""))
            found.append((str(name), description, sorted(ranks, key=ranks.__getitem__)))
    return found


def _world() -> Any:
    """What torch knows of this process's groups; None before it is asked for any."""
    return getattr(sys.modules.get("torch.distributed.distributed_c10d"), "_world", None)
