"""The fork servers of an agent: one for all meshes with the same interpreter, environment and preloads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from forgectl.agent.forkserver.forks import ForkServer
from forgectl.agent.forkserver.spawn import StartedForkServer, begin, log_of
from forgectl.agent.reaper import Reaper
from forgectl.model.mesh_share import MeshShare
from forgectl.model.plan import ForkServerPlan
from forgectl.protocol.supervision import AgentConfig


class ForkServers:
    """Starts a fork server when a mesh first needs it, and ends it when none does; `warming` were started before."""

    def __init__(self, config: AgentConfig, reaper: Reaper, warming: Iterable[StartedForkServer] = ()) -> None:
        self._config = config
        self._reaper = reaper
        self._servers = {w.plan: ForkServer(w, reaper) for w in warming}
        self._standing_by: set[ForkServerPlan] = set()
        reaper.reap()  # a server may have ended already

    def of(self, share: MeshShare) -> ForkServer:
        """The fork server of a mesh's share; raises OSError if it cannot start, KeyError for an unknown secret."""
        plan = self._plan(share)
        server = self._servers.get(plan)
        if server is None or server.spent:
            log = log_of(Path(self._config.run_dir), self._config.host, len(self._servers))
            server = self._servers[plan] = ForkServer(begin(plan, log), self._reaper)
        return server

    def stand_by(self, shares: Iterable[MeshShare]) -> list[ForkServer]:
        """The servers of these shares, which stay until the agent ends; raises as `of`."""
        found = {self._plan(share): self.of(share) for share in shares}
        self._standing_by = set(found)
        return list(found.values())

    def keep(self, shares: Iterable[MeshShare]) -> None:
        """End the servers that none of these needs, except those of `stand_by`."""
        wanted = {self._plan(share) for share in shares} | self._standing_by
        for plan in [p for p in self._servers if p not in wanted]:
            self._servers.pop(plan).stop()

    def _plan(self, share: MeshShare) -> ForkServerPlan:
        return share.fork_server(self._config.run, self._config.secrets)
