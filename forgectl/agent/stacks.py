"""Looks where ranks are: asks each over its socket, sends a signal where it does not answer, and runs py-spy."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from forgectl.frozen import dataclass
from forgectl.names import socket_prefix
from forgectl.rank.stacks import PROGRESS, SIGNAL, STACKS
from forgectl.stacks import reading, recorder
from forgectl.stacks.evidence import Collective, RankEvidence, RankView, ThreadStack
from forgectl.system.processes import REAL, Identity, Stat, signal_exactly
from forgectl.system.tasks import within
from forgectl.wire.unix_sockets import dial

ANSWER_SECONDS = 0.4
"""After this the signal is sent. To answer a rank needs the GIL, a matter of milliseconds unless C code holds it."""
SIGNAL_SECONDS = 0.5
QUIET_SECONDS = 0.1
"""A dump that has not grown for so long is over, if its end does not show."""
SPY_SECONDS, NATIVE_SECONDS = 3.0, 15.0
SPIES = asyncio.Semaphore(4)
MOST_ANSWER = 32 << 20
"""Bytes of a rank's answer: a recorder of 2,000 collectives takes 1 MB."""
ANSWER_BYTES = 2 << 20
"""About the size of all stacks in one message; beyond it threads other than the main one are left out."""
Redact = Callable[[str], str]
OURS = f"{Path(__file__).parents[1]}{os.sep}"


@dataclass(frozen=True)
class LiveRank:
    """A rank that runs on this host. `place` is where it can be asked, `python` its interpreter."""

    rank: int
    host: str
    identity: Identity
    place: str
    workdir: str
    python: str


def place_of(folder: Path, mesh: str, generation: int, rank: int) -> str:
    """Where a rank can be asked: the start of the names of its files in `folder`."""
    return f"{folder}/{socket_prefix(mesh)}-{generation}-{rank}"


class StackReader:
    """Looks at ranks, for one question at a time: two would share the files that signals fill.

    `redact` takes secrets out of names that user code gives, such as those of threads and tasks. It does so before
    they are cut: half a secret would not be recognised.
    """

    def __init__(self, redact: Redact) -> None:
        self._redact = redact
        self._looking = asyncio.Lock()

    async def look(self, meshes: dict[str, list[LiveRank]], *, native: bool) -> dict[str, tuple[RankEvidence, ...]]:
        """Where these ranks are. It takes at most a second, but for py-spy; `native`: with the frames of C code."""
        async with self._looking:
            found = {
                mesh: await asyncio.gather(*(_look(r, native, self._redact) for r in ranks))
                for mesh, ranks in meshes.items()
            }
        share = ANSWER_BYTES // max(1, sum(map(len, meshes.values())))
        return {mesh: tuple(_cut(rank, share) for rank in ranks) for mesh, ranks in found.items()}


UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What comes of an answer that is not in the form of a rank's: it is its program's own text."""


async def _look(rank: LiveRank, native: bool, redact: Redact) -> RankEvidence:
    pid = rank.identity.pid
    stat = REAL.stat(pid)

    def seen(view: RankView, **more: Any) -> RankEvidence:
        return RankEvidence(rank=rank.rank, host=rank.host, pid=pid, workdir=rank.workdir, view=view, **more)

    if stat is None or stat.start_time != rank.identity.start_time or stat.dead:
        return seen("ended", detail="it has just ended")
    if stat.state in "Tt":
        return seen("stopped", detail="held by a debugger" if stat.state == "t" else "stopped by a signal (SIGSTOP)")
    told: dict[str, Any] = {}
    with contextlib.suppress(*UNREADABLE, OSError, asyncio.TimeoutError):
        told = _read(await within(ANSWER_SECONDS, _ask(rank, STACKS)), rank, redact)
    if native and (threads := await _spy(rank, redact, native=True)):
        return seen("seen", **{**told, "source": "py-spy", "threads": threads})
    if told.get("threads"):
        return seen("seen", **told)
    if threads := await _signal(rank, redact):
        return seen("seen", source="signal", threads=threads)
    if threads := await _spy(rank, redact, native=False):
        return seen("seen", source="py-spy", threads=threads)
    stat = REAL.stat(pid) or stat
    return seen("blocked" if stat.state == "D" else "silent", detail=redact(_idle(stat)))


async def entered(rank: LiveRank) -> tuple[int, bool] | None:
    """How many collectives a rank has entered, and whether it waits for others to join a group; None: no answer."""
    with contextlib.suppress(*UNREADABLE, OSError, asyncio.TimeoutError):
        found = json.loads(await within(ANSWER_SECONDS, _ask(rank, PROGRESS)))
        return int(found["entered"]), bool(found["joining"])
    return None


async def _ask(rank: LiveRank, what: bytes) -> bytes:
    """What the rank answers; raises OSError, ValueError if it is too long."""
    reader, writer = await asyncio.open_unix_connection(sock=dial(Path(f"{rank.place}.sock"), 0.1))
    answer = bytearray()
    try:
        writer.write(what)
        while chunk := await reader.read(1 << 18):
            answer += chunk
            if len(answer) > MOST_ANSWER:
                raise ValueError("the answer is too long")
    finally:
        writer.close()
    return bytes(answer)


def _read(answer: bytes, rank: LiveRank, redact: Redact) -> dict[str, Any]:
    """The fields of RankEvidence that a rank's answer gives; raises UNREADABLE."""
    now = time.time()
    head, _, rest = answer.partition(b"\n")
    document = _loads(head, redact)
    threads, groups = reading.of_rank(document, rank.workdir, OURS)
    collectives: tuple[Collective, ...] = ()
    for length in document["recorded"]:
        collectives += recorder.read(_loads(rest[:length], redact), now)
        rest = rest[length:]
    return {
        "source": "rank",
        "threads": threads,
        "groups": groups,
        "recorded": bool(document["recorded"]),
        "collectives": collectives,
    }


def _loads(text: bytes, redact: Redact) -> Any:
    """A JSON document, with every string in it redacted; raises ValueError."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return redact(value)
        if isinstance(value, list):
            return [cleaned(v) for v in value]
        return {k: cleaned(v) for k, v in value.items()} if isinstance(value, dict) else value

    return cleaned(json.loads(text))


async def _signal(rank: LiveRank, redact: Redact) -> tuple[ThreadStack, ...]:
    """The stacks that `faulthandler` writes; empty if the rank does not handle the signal, or does not answer."""
    path = f"{rank.place}.txt"
    try:
        os.truncate(path, 0)
    except OSError:
        return ()
    if not _handles_signal(rank.identity.pid) or not signal_exactly(rank.identity, SIGNAL):
        return ()
    end, text, grown = time.monotonic() + SIGNAL_SECONDS, "", time.monotonic()
    while time.monotonic() < end and not reading.is_whole(text):
        await asyncio.sleep(0.005)  # nothing sends an event for a file that grows
        with contextlib.suppress(OSError):
            before, text = text, _text(path)
            grown = time.monotonic() if text != before else grown
        if text and time.monotonic() - grown > QUIET_SECONDS:
            break
    return reading.of_faulthandler(redact(text), rank.workdir, OURS)


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace")


def _handles_signal(pid: int) -> bool:
    """Whether a process handles SIGNAL, which would end it otherwise."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (SIGNAL - 1) & 1)
    return False


async def _spy(rank: LiveRank, redact: Redact, *, native: bool) -> tuple[ThreadStack, ...]:
    """The stacks that py-spy sees; empty if it is not installed, or may not look."""
    beside = Path(rank.python).parent / "py-spy"
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")
    if program is None:
        return ()
    argv = [program, "dump", "--json", "--pid", str(rank.identity.pid), *(["--native"] if native else [])]
    seconds = NATIVE_SECONDS if native else SPY_SECONDS
    async with SPIES:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, subprocess.TimeoutExpired):
            # In a thread, as the agent's reaper may collect the child first: subprocess bears that.
            spied = await asyncio.to_thread(
                subprocess.run, argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
            return reading.of_py_spy(_loads(spied.stdout, redact), rank.identity.pid, rank.workdir, OURS)
    return ()


def _idle(stat: Stat) -> str:
    """What the kernel says of a process that gave no stack."""
    where = REAL.wchan(stat.pid)
    waits = f"waits in the kernel{f' ({where})' if where else ''}"
    states = {"D": f"{waits} and cannot be interrupted", "R": "runs", "S": waits}
    return f"{stat.name} {states.get(stat.state, f'is in state {stat.state}')}"


def _cut(rank: RankEvidence, most: int) -> RankEvidence:
    """The evidence with as many threads as fit into about `most` bytes; the main thread always stays."""
    kept: list[ThreadStack] = []
    size = 150 * len(rank.collectives)
    for thread in rank.threads:
        size += sum(60 + len(f.file) + len(f.function) for f in thread.frames)
        if kept and size > most:
            break
        kept.append(thread)
    if len(kept) == len(rank.threads):
        return rank
    return dataclasses.replace(rank, threads=tuple(kept))


def remove(places: Iterable[str]) -> None:
    """Remove the files of ranks that have ended."""
    for place in places:
        for end in (".sock", ".txt", ".count"):
            with contextlib.suppress(OSError):
                os.unlink(place + end)  # noqa: PTH108 (a Path takes longer)
