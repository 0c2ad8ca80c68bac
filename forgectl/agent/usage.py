"""What ranks use of the machine: processor time and memory, measured only when somebody asks."""

from __future__ import annotations

import time

import psutil

from forgectl.protocol.supervision import RankStats
from forgectl.system.processes import Identity


class UseMeter:
    """Remembers each rank's processor time at the last measurement, to compute a percentage."""

    def __init__(self) -> None:
        self._last: dict[Identity, tuple[float, float]] = {}  # monotonic seconds, CPU seconds

    def measure(
        self, meshes: dict[str, dict[int, Identity]], still: dict[str, dict[int, float]]
    ) -> dict[str, dict[int, RankStats]]:
        """Mesh → rank → use since the last call; the first time, since the rank's start. `still` is as in RankStats."""
        before, self._last = self._last, {}
        return {
            mesh: {
                rank: stats
                for rank, identity in ranks.items()
                if (stats := self._one(identity, before.get(identity), still[mesh].get(rank))) is not None
            }
            for mesh, ranks in meshes.items()
        }

    def _one(self, identity: Identity, before: tuple[float, float] | None, still: float | None) -> RankStats | None:
        try:
            process = psutil.Process(identity.pid)
            with process.oneshot():
                times = process.cpu_times()
                rss = process.memory_info().rss
                started = process.create_time()
        except psutil.Error:
            return None
        now, used = time.monotonic(), times.user + times.system
        if before is None:
            before = (now - max(time.time() - started, 0.01), 0.0)
        self._last[identity] = (now, used)
        percent = 100.0 * (used - before[1]) / max(now - before[0], 0.01)
        return RankStats(round(max(percent, 0.0), 1), rss, still)
