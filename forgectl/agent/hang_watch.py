"""Watches the progress of this host's ranks, and reports those that hang. What counts is decided in `progress.py`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from forgectl.agent.hosted_mesh import HostMesh
from forgectl.agent.progress import RankProgress, Signs
from forgectl.agent.stacks import LiveRank, entered
from forgectl.protocol.supervision import Happening, ProgressResumed, ProgressStopped
from forgectl.rank.progress import SIZE

SHORTEST, LONGEST = 0.25, 5.0
"""Seconds between two looks at a mesh: a tenth of the time after which it hangs, but within these."""
TURN_SECONDS = 0.25


class _MeshWatch:
    """One generation of a mesh."""

    def __init__(self, mesh: HostMesh, generation: int) -> None:
        hang = mesh.share.hang
        self.generation = generation
        self.ranks: dict[int, RankProgress] = {}
        self.interval = min(max(min(hang.after, hang.start or hang.after) / 10, SHORTEST), LONGEST)
        self.next_look = 0.0
        self.reported = False

    async def look(self, mesh: HostMesh) -> Happening | None:
        """Look at all its ranks; returns what there is to report."""
        share = mesh.share
        watched = mesh.watched_ranks()
        for rank in watched:
            if rank.rank not in self.ranks:
                self.ranks[rank.rank] = RankProgress(share.hang, serves=share.stays, now=time.monotonic())
        self.ranks = {rank.rank: self.ranks[rank.rank] for rank in watched}
        logs = watched if share.hang.logs else {}
        seen = await asyncio.gather(*(_signs(r, logs.get(r), self.ranks[r.rank].signs) for r in watched))
        now = time.monotonic()
        for rank, signs in zip(watched, seen, strict=True):
            self.ranks[rank.rank].see(signs, now, 3 * self.interval)
        self.next_look = now + self.interval
        hung = any(r.hangs() for r in self.ranks.values())
        if hung == self.reported:
            return None
        self.reported = hung
        if not hung:
            return ProgressResumed(share.mesh, self.generation)
        # Those that stopped with it, too, though their time is not over: their looks are not at one moment.
        which = {n: r.still(now) for n, r in self.ranks.items() if r.hangs(2 * self.interval)}
        return ProgressStopped(share.mesh, self.generation, tuple(which), max(s for s in which.values() if s))


async def _signs(rank: LiveRank, log: Path | None, before: Signs) -> Signs:
    """What is seen of a rank now. It is asked only if nothing else shows progress."""
    signs = dataclasses.replace(before, counts=_counts(rank), log=_size(log))
    if signs.progress != before.progress or (answer := await entered(rank)) is None:
        return signs
    return dataclasses.replace(signs, entered=answer[0], joining=answer[1])


def _counts(rank: LiveRank) -> tuple[int, ...]:
    with contextlib.suppress(OSError, struct.error):
        return struct.unpack(f"{SIZE // 8}Q", Path(f"{rank.place}.count").read_bytes())
    return ()


def _size(log: Path | None) -> int:
    with contextlib.suppress(OSError):
        return log.stat().st_size if log is not None else 0
    return 0


class HangWatch:
    """All meshes of this host, by name. `emit` takes what is reported."""

    def __init__(self, meshes: Mapping[str, HostMesh], emit: Callable[[Happening], None]) -> None:
        self._meshes = meshes
        self._emit = emit
        self._watches: dict[str, _MeshWatch] = {}

    async def keep(self) -> None:
        """Watch for ever."""
        while True:
            await asyncio.sleep(TURN_SECONDS)
            now = time.monotonic()
            due = [(m, w) for m in self._meshes.values() if (w := self._watch(m)) is not None and w.next_look <= now]
            await asyncio.gather(*(self._look(mesh, watch) for mesh, watch in due))

    async def _look(self, mesh: HostMesh, watch: _MeshWatch) -> None:
        found = None
        with contextlib.suppress(Exception):  # a rank may answer anything, and others are to be watched all the same
            found = await watch.look(mesh)
        generation = mesh.generation
        over = generation is None or generation.number != watch.generation or generation.stopping.is_set()
        if found is not None and not over:
            self._emit(found)

    def _watch(self, mesh: HostMesh) -> _MeshWatch | None:
        if mesh.generation is None:
            return None
        known = self._watches.get(mesh.share.mesh)
        if known is None or known.generation != mesh.generation.number:
            known = self._watches[mesh.share.mesh] = _MeshWatch(mesh, mesh.generation.number)
        return known

    def still(self, mesh: HostMesh) -> dict[int, float]:
        """Rank → seconds since its last progress, of those that work."""
        now, watch = time.monotonic(), self._watch(mesh)
        found = {n: r.still(now) for n, r in watch.ranks.items()} if watch else {}
        return {n: round(seconds, 1) for n, seconds in found.items() if seconds is not None}
